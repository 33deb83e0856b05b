"""Folders of images: with a folder per class, as in torchvision, or without labels."""

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
"""Usual folder names for a data set's splits. Each of these folders contains a folder per class."""


def has_class_folders(src: Path) -> bool:
    """Return whether a folder in `src` contains an image, at any depth. The search stops at the first image."""
    if not src.is_dir():
        return False
    visited = {_identity(src): str(src)}
    folders = (src / name for name in class_names(src))
    return any(is_image(name) for folder in folders for _, names, _ in _walk(folder, visited) for name in names)


def has_loose_images(src: Path) -> bool:
    """Return whether `src` directly contains images. They have no class, because they are not in a class folder."""
    return src.is_dir() and any(map(is_image, os.listdir(src)))


def list_images(src: Path, classes_file: str = "") -> Source:
    """List the images below each class folder of `src`, in the order of torchvision's ImageFolder.

    Unlike in torchvision, hidden files and folders are skipped. Warnings give the number of hidden files and folders,
    of files that are not images, and of files outside the class folders.

    Args:
        classes_file: file for `read_classes` that lists the classes in label order. Listed classes may have no folder
            or no images. With "", the classes are the sorted folder names.

    Raises:
        ValueError: a link leads to a folder that was already listed; a folder cannot be read; `classes_file` does not
            list a folder's name; or, without `classes_file`, a folder contains no image or seems to be a split instead
            of a class.
    """
    classes = _classes(src, classes_file)
    if not classes_file:
        check_are_no_splits(src, classes)
    known = set(class_names(src))  # a class name such as a/b or .. must not lead into another folder
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
            f"class folder {str(src / classes[min(empty)])!r} has no images ({' '.join(EXTENSIONS)}). Add some, "
            "move the folder away, or pass --classes FILE: a file with a class name per line, or a .beton. Listed "
            "classes may be empty."
        )
    if empty:
        found = (len(empty), len(classes), classes_file, str(src), classes[min(empty)])
        logger.info("%d of the %d classes of %r have no images in %r; the first is %r", *found)
    warn_of_left_out("files outside of the class folders", sorted(loose))
    _warn_of_others(others, hidden)
    return Source("ImageFolder", classes, np.array(labels, np.int64), paths, _sizes(paths), _reader(paths))


def list_unlabelled(src: Path) -> Source:
    """List the images in a folder, at any depth, without classes; all labels are 0.

    Hidden files and folders are skipped, and a warning counts them.

    Raises:
        ValueError: there is no image, a link leads to a folder that was already listed, or a folder cannot be read.
    """
    others, hidden = [], []
    paths = _images(src, {}, others, hidden) if src.is_dir() else []
    if not paths:
        raise ValueError(f"no images ({' '.join(EXTENSIONS)}) at any depth in {str(src)!r}. Check the path.")
    _warn_of_others(others, hidden)
    return Source("images without labels", (), np.zeros(len(paths), np.int64), paths, _sizes(paths), _reader(paths))


def earlier_fingerprint(source: Source, *, without: str) -> str:
    """Return the fingerprint that earlier versions of this package computed for class folders.

    Those versions sorted the names in each folder separately, so `s1/deep` came before `s1-b`. This version sorts whole
    paths, as torchvision does.
    """

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
        raise ValueError(f"cannot read an image: {error}. Fix or remove the file.") from error


def _size(path: str) -> int:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # a FIFO would block, and /dev/zero never ends
        raise ValueError(f"image {path!r} is not a regular file. Remove it, or the link that leads to it.")
    return found.st_size


def _reader(paths: Sequence[str]) -> Callable[[int], bytes]:
    return lambda i: Path(paths[i]).read_bytes()


def _classes(src: Path, classes_file: str) -> tuple[str, ...]:
    """Return the class names in label order: the sorted folder names, or the file's list, which must include them."""
    folders = class_names(src)
    if not classes_file:
        return tuple(folders)
    classes = read_classes(classes_file)
    unknown = sorted(set(folders).difference(classes))
    if unknown:
        found = f"{str(src / unknown[0])!r} ({nearest(unknown[0], classes)})"
        found += f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise ValueError(
            f"{classes_file!r} has {len(classes)} classes, but not the class of folder {found}. Add the name, or move "
            "the folder away."
        )
    return classes


def check_are_no_splits(src: Path, classes: Sequence[str]) -> None:
    """Raise ValueError if the folders in `src` are splits, such as train/, instead of classes.

    A split directly contains folders but no images. A folder like this is taken for a split if its name is in
    `SPLIT_NAMES`. If no name is in it, the folders in `src` are taken for splits only if every one is like this.
    """
    inner = {name: _folders_only(src / name) for name in classes}
    splits = [name for name in SPLIT_NAMES if inner.get(name)] or list(classes if all(inner.values()) else ())
    if splits:
        folder = src / splits[0]
        folders = inner[splits[0]]
        raise ValueError(
            f"{str(folder)!r} is not a class: it directly contains no images, only folders ({', '.join(folders[:3])}"
            f"{', ...' * (len(folders) > 3)}). If those are the classes, give {str(folder)!r} instead: "
            f"vitkd-ds pack {shlex.join([str(folder), f'{folder}{SUFFIX}'])}. Otherwise, write a file with "
            f"the names of the folders in {str(src)!r} that are classes, one per line, and pass --classes FILE."
        )


def _folders_only(folder: Path) -> list[str]:
    """Return the folders in `folder` if it directly contains no images, otherwise []. Hidden entries are ignored."""
    _, folders, names = next(os.walk(folder, onerror=_cannot_list))
    has_images = any(is_image(name) and not name.startswith(".") for name in names)
    return [] if has_images else sorted(name for name in folders if not name.startswith("."))


def class_names(src: Path) -> list[str]:
    """Return the sorted names of the class folders in `src`, without hidden ones."""
    return sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _images(top: Path, visited: dict[tuple[int, int], str], others: list[str], hidden: list[str]) -> list[str]:
    """Return the paths of all images in a folder, at any depth, in torchvision's order: by folder path, then by name.

    Paths of other files are added to `others`, and paths of hidden files and folders to `hidden`.
    """
    images = []
    for root, names, left_out in sorted(_walk(top, visited)):
        for name in sorted(names):
            (images if is_image(name) else others).append(os.path.join(root, name))
        hidden += [os.path.join(root, name) for name in sorted(left_out)]
    return images


def _walk(top: Path, visited: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a folder and all visible folders below it.

    Args:
        visited: paths of the folders already seen, by device and inode; updated in place.

    Yields:
        For each folder: its path, the names of its visible files, and the names of its hidden files and folders.

    Raises:
        ValueError: a folder cannot be read, or a link leads to a folder that was already seen. The images in such a
            folder would be listed twice, perhaps in two classes.
    """
    for root, folders, names in os.walk(top, onerror=_cannot_list, followlinks=True):
        before = visited.setdefault(_identity(root), root)
        if before != root:
            raise ValueError(
                f"{root!r} is a link to the folder {before!r}, whose images are already listed. Remove the link."
            )
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, [name for name in names if not name.startswith(".")], hidden


def _cannot_list(error: OSError) -> None:
    """Raise ValueError for a folder that cannot be read; `os.walk` would silently skip its images."""
    raise ValueError(f"cannot list {error.filename!r}: {error.strerror}. Make it readable, or move it away.") from error
