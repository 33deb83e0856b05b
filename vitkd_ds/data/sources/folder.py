"""ImageFolder: a tree with one folder per class, as torchvision reads it."""

import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vitkd_ds.config.overrides import nearest
from vitkd_ds.data.image_file import EXTENSIONS
from vitkd_ds.data.sources.class_list import read_classes
from vitkd_ds.data.sources.source import Source, is_image

logger = logging.getLogger(__name__)


def has_class_folders(src: Path) -> bool:
    """Whether some folder in `src` holds an image; looks no further than the first one."""
    return src.is_dir() and any(is_image(path) for _, path in _files(src, class_names(src)))


def has_loose_images(src: Path) -> bool:
    """Whether images lie in `src` itself, where no folder gives them a class."""
    return src.is_dir() and any(map(is_image, os.listdir(src)))


def list_images(src: Path, classes_file: str = "") -> Source:
    """List the images below each class folder of `src`, in the order of the classes; hidden files and folders are left
    out.

    Args:
        classes_file: file that `read_classes` reads, which gives the classes their order and may name some without a
            folder or without images. "" takes the folders, sorted.

    Raises:
        ValueError: a class folder has no image, or is none of those named, or links lead to one folder twice.
    """
    classes, images, others = _classes(src, classes_file), [], []
    for label, path in _files(src, classes):
        (images if is_image(path) else others).append((label, path))
    labels, paths = [label for label, _ in images], [path for _, path in images]
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
    _warn_of_others([path for _, path in others])
    return Source("ImageFolder", classes, np.array(labels, np.int64), paths, _sizes(paths), _reader(paths))


def list_unlabelled(src: Path) -> Source:
    """List the images in a folder, at any depth, without classes; hidden files and folders are left out. All labels
    are 0, and there are no classes.

    Raises:
        ValueError: there is no image, or links lead to one folder twice.
    """
    files = [path for path in _walk(src, {})] if src.is_dir() else []
    paths, others = [path for path in files if is_image(path)], [path for path in files if not is_image(path)]
    if not paths:
        raise ValueError(
            f"a folder without classes must hold images ({' '.join(EXTENSIONS)}) at any depth, found none in "
            f"{str(src)!r}: check the path"
        )
    _warn_of_others(others)
    return Source("images without labels", (), np.zeros(len(paths), np.int64), paths, _sizes(paths), _reader(paths))


def _warn_of_others(paths: Sequence[str]) -> None:
    if paths:
        logger.warning("%d files without an image's ending are left out, the first is %r", len(paths), paths[0])


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


def class_names(src: Path) -> list[str]:
    """The names of the class folders in `src`, sorted; hidden ones are left out."""
    return sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))


def _files(src: Path, classes: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The number of a class, and the path of a file below its folder, of each file that is not hidden, class by class
    and sorted. Raises ValueError if a link leads to a folder that was visited already, because its images would be
    listed twice, perhaps as two classes."""
    top = os.stat(src)
    visited = {(top.st_dev, top.st_ino): str(src)}
    known = set(class_names(src))  # a class that is called a/b or .. is no way into another folder
    for label, class_name in [(label, name) for label, name in enumerate(classes) if name in known]:
        yield from ((label, path) for path in _walk(src / class_name, visited))


def _walk(top: Path, visited: dict[tuple[int, int], str]) -> Iterator[str]:
    """The paths of the files below a folder, sorted, without hidden ones. `visited` has the folders seen before, by
    device and inode; raises ValueError if a link leads to one of them."""
    for root, folders, names in os.walk(top, followlinks=True):
        folder = os.stat(root)
        before = visited.setdefault((folder.st_dev, folder.st_ino), root)
        if before != root:
            raise ValueError(
                f"each folder of images must be listed once, found {before!r} again as {root!r}: remove the link"
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(root, name) for name in sorted(names) if not name.startswith("."))
