"""ImageFolder: a tree with one folder per class, as torchvision reads it."""

import logging
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitkd_ds.config.overrides import nearest
from vitkd_ds.data.beton.format import SUFFIX
from vitkd_ds.data.image_file import EXTENSIONS
from vitkd_ds.data.sources.class_list import read_classes
from vitkd_ds.data.sources.source import Source, is_image, warn_of_left_out

logger = logging.getLogger(__name__)

SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")
"""Usual names of the parts of a data set, each with a folder per class."""


def has_class_folders(src: Path) -> bool:
    """Whether some folder in `src` holds an image; looks no further than the first one."""
    if not src.is_dir():
        return False
    visited = {_identity(src): str(src)}
    folders = (src / name for name in class_names(src))
    return any(is_image(name) for folder in folders for _, names, _ in _walk(folder, visited) for name in names)


def has_loose_images(src: Path) -> bool:
    """Whether images lie in `src` itself, where no folder gives them a class."""
    return src.is_dir() and any(map(is_image, os.listdir(src)))


def list_images(src: Path, classes_file: str = "") -> Source:
    """List the images below each class folder of `src`, in the order of torchvision's ImageFolder. Hidden files and
    folders, which torchvision reads, are left out. One warning counts them, another counts files outside class folders.

    Args:
        classes_file: file that `read_classes` reads, which gives the classes their order and may name some without a
            folder or without images. "" takes the folders, sorted.

    Raises:
        ValueError: a class folder has no image, or only folders and no list names it, or is none of those named, or
            links lead to one folder twice, or a folder cannot be listed.
    """
    classes = _classes(src, classes_file)
    if not classes_file:
        _check_are_no_splits(src, classes)
    known = set(class_names(src))  # a class that is called a/b or .. is no way into another folder
    hidden = sorted(entry.path for entry in os.scandir(src) if entry.name.startswith("."))
    loose = {entry.path for entry in os.scandir(src) if not entry.is_dir()}.difference(hidden)
    labels, paths, others = [], [], []
    visited = {_identity(src): str(src)}
    for label, name in enumerate(classes):
        found = _images(src / name, visited, others, hidden) if name in known else []
        paths += found
        labels += [label] * len(found)
    empty = set(range(len(classes))).difference(labels)
    if empty and not classes_file:
        raise ValueError(
            f"each class folder must have images ({' '.join(EXTENSIONS)}), found none in "
            f"{str(src / classes[min(empty)])!r}: add some, move the folder away, or give --classes a file with a name "
            f"per line, or another .beton, whose classes need no images here"
        )
    if empty:
        found = (len(empty), len(classes), classes_file, str(src), classes[min(empty)])
        logger.info("%d of the %d classes of %r have no images in %r, the first is %r", *found)
    warn_of_left_out("files outside of the class folders", sorted(loose))
    _warn_of_others(others, hidden)
    return Source("ImageFolder", classes, np.array(labels, np.int64), paths, _sizes(paths), _reader(paths))


def list_unlabelled(src: Path) -> Source:
    """List the images in a folder, at any depth, without classes; a warning counts hidden files and folders, which are
    left out. All labels are 0, and there are no classes.

    Raises:
        ValueError: there is no image, or links lead to one folder twice, or a folder cannot be listed.
    """
    others, hidden = [], []
    paths = _images(src, {}, others, hidden) if src.is_dir() else []
    if not paths:
        raise ValueError(
            f"a folder without classes must hold images ({' '.join(EXTENSIONS)}) at any depth, found none in "
            f"{str(src)!r}: check the path"
        )
    _warn_of_others(others, hidden)
    return Source("images without labels", (), np.zeros(len(paths), np.int64), paths, _sizes(paths), _reader(paths))


def earlier_fingerprint(source: Source, *, without: str) -> str:
    """The fingerprint of class folders as earlier versions computed it. They visited `s1/deep` before `s1-b`, because
    they sorted the folders inside each folder, where torchvision sorts whole paths."""

    def place(number: int) -> tuple:
        *folders, name = source.names[number].split(os.sep)
        return source.labels[number], [*((1, folder) for folder in folders), (0, name)]

    order = sorted(range(len(source.names)), key=place)
    names = [source.names[number] for number in order]
    return replace(source, names=names, sizes=source.sizes[order]).fingerprint(without=without)


def _warn_of_others(paths: Sequence[str], hidden: Sequence[str]) -> None:
    warn_of_left_out("files without an image's ending", paths)
    warn_of_left_out("hidden files and folders", hidden)


def _sizes(paths: Sequence[str]) -> np.ndarray:
    try:
        return np.fromiter(map(_size, paths), np.int64, count=len(paths))
    except OSError as error:
        raise ValueError(f"every image must be readable, found {error}: repair or remove the file") from error


def _size(path: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a FIFO would be waited for, and /dev/zero never ends
        raise ValueError(f"every image must be a plain file, found none at {path!r}: remove it, or what links there")
    return found.st_size


def _reader(paths: Sequence[str]) -> Callable[[int], bytes]:
    return lambda i: Path(paths[i]).read_bytes()


def _classes(src: Path, classes_file: str) -> tuple[str, ...]:
    """Class names in label order: the folders, sorted, or those of the file, which each folder must be among."""
    folders = class_names(src)
    if not classes_file:
        return tuple(folders)
    classes = read_classes(classes_file)
    unknown = sorted(set(folders).difference(classes))
    if unknown:
        found = f"{str(src / unknown[0])!r} ({nearest(unknown[0], classes)})"
        found += f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise ValueError(
            f"each class folder must be one of the {len(classes)} classes of {classes_file!r}, found {found}: add the "
            f"name, or move the folder away"
        )
    return classes


def _check_are_no_splits(src: Path, classes: Sequence[str]) -> None:
    """Raise ValueError for folders such as train/, whose folders are the classes, in the place of classes: by their
    names, or because none of them has images of its own."""
    inner = {name: _folders_only(src / name) for name in classes}
    splits = [name for name in SPLIT_NAMES if inner.get(name)] or list(classes if all(inner.values()) else ())
    if splits:
        folder = src / splits[0]
        folders = inner[splits[0]]
        raise ValueError(
            f"{str(folder)!r} is no class: it holds no images of its own, only folders ({', '.join(folders[:3])}"
            f"{', ...' * (len(folders) > 3)}). If those are the classes, give {str(folder)!r} instead: "
            f"vitkd-ds pack {shlex.join([str(folder), f'{folder}{SUFFIX}'])}. Otherwise write the names of the folders "
            f"in {str(src)!r} into a file, one per line, and pass it as --classes"
        )


def _folders_only(folder: Path) -> list[str]:
    """Return the folders in one that holds no image beside them; hidden entries do not count."""
    _, folders, names = next(os.walk(folder, onerror=_cannot_list))
    has_images = any(is_image(name) and not name.startswith(".") for name in names)
    return [] if has_images else sorted(name for name in folders if not name.startswith("."))


def class_names(src: Path) -> list[str]:
    """The names of the class folders in `src`, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _images(top: Path, visited: dict[tuple[int, int], str], others: list[str], hidden: list[str]) -> list[str]:
    """The paths of the images in and below a folder, in torchvision's order: by the path of their folder as text, then
    by name. `others` gets the paths of other files, and `hidden` those of hidden files and folders."""
    images = []
    for root, names, left_out in sorted(_walk(top, visited)):
        for name in sorted(names):
            (images if is_image(name) else others).append(os.path.join(root, name))
        hidden += [os.path.join(root, name) for name in sorted(left_out)]
    return images


def _walk(top: Path, visited: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Path, names of files, and names of hidden files and folders, of a folder and of those below it that are not
    hidden. `visited` has the folders seen before, by device and inode; raises ValueError if a link leads to one of
    them, because its images would be listed twice, perhaps as two classes, or if a folder cannot be listed."""
    for root, folders, names in os.walk(top, onerror=_cannot_list, followlinks=True):
        before = visited.setdefault(_identity(root), root)
        if before != root:
            raise ValueError(
                f"each folder of images must be listed once, found {before!r} again as {root!r}: remove the link"
            )
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, [name for name in names if not name.startswith(".")], hidden


def _cannot_list(error: OSError) -> None:
    """Raise a ValueError for a folder that cannot be listed, whose images `os.walk` would leave out silently."""
    raise ValueError(f"cannot list {error.filename!r}: {error.strerror}. Make it readable, or move it away.") from error
