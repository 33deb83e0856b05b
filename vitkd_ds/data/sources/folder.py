"""ImageFolder: a tree with one folder per class, as torchvision reads it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitkd_ds.data.image_file import EXTENSIONS
from vitkd_ds.data.sources.source import Options, Source

logger = logging.getLogger(__name__)


def has_class_folders(src: Path) -> bool:
    """Whether some folder in `src` holds an image; looks no further than the first one."""
    if not src.is_dir():
        return False
    visited = _visited(src)
    return any(
        _is_image(file) for name in _class_names(src) for _, files in _walk(src / name, visited) for file in files
    )


def has_loose_images(src: Path) -> bool:
    """Whether images lie in `src` itself, where no folder gives them a class."""
    return src.is_dir() and any(map(_is_image, os.listdir(src)))


def list_images(src: Path, options: Options) -> Source:
    """List the images below each class folder of `src`, in sorted order; hidden files and folders are left out.

    Raises:
        ValueError: a class folder has no image, or links lead to one folder twice.
    """
    classes, visited = _class_names(src), _visited(src)
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        found, ignored = _images_below(src / name, visited)
        if not found:
            raise ValueError(
                f"each class folder must have images ({' '.join(EXTENSIONS)}), found none in {str(src / name)!r}: "
                f"add some, or move the folder away"
            )
        paths += found
        labels += [label] * len(found)
        others += ignored
    if others:
        logger.warning("%d files without an image's ending are left out, the first is %r", len(others), others[0])
    sizes = np.fromiter((_size(path) for path in paths), np.int64, count=len(paths))
    return Source("ImageFolder", tuple(classes), np.array(labels, np.int64), paths, sizes, _reader(paths))


def _class_names(src: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _visited(src: Path) -> dict[tuple[int, int], str]:
    """Where `_walk` notes device and inode of each folder, and its name; `src` itself is one already."""
    stat = os.stat(src)
    return {(stat.st_dev, stat.st_ino): str(src)}


def _walk(folder: Path, visited: dict[tuple[int, int], str]) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` down, sorted, and the names in it, without hidden ones. Links are followed.

    Raises:
        ValueError: a folder is one that was visited already: its images would be listed twice, perhaps as two classes.
    """
    for root, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(root)
        before = visited.setdefault((stat.st_dev, stat.st_ino), root)
        if before != root:
            raise ValueError(
                f"each folder of images must be listed once, found {before!r} again as {root!r}: remove the link"
            )
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield root, sorted(name for name in names if not name.startswith("."))


def _images_below(folder: Path, visited: dict[tuple[int, int], str]) -> tuple[list[str], list[str]]:
    """Paths of the images in `folder` and its subfolders, and of the other files."""
    images, others = [], []
    for root, names in _walk(folder, visited):
        for name in names:
            (images if _is_image(name) else others).append(os.path.join(root, name))
    return images, others


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ValueError(f"every image must be readable, found {error}: repair or remove the file") from error


def _reader(paths: list[str]):
    def read(index: int) -> bytes:
        with open(paths[index], "rb") as file:
            return file.read()

    return read
