"""ImageFolder: a tree with one folder per class, as torchvision reads it."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vitkd_ds.data.image_file import EXTENSIONS
from vitkd_ds.data.sources.source import Source, is_image

logger = logging.getLogger(__name__)


def has_class_folders(src: Path) -> bool:
    """Whether some folder in `src` holds an image; looks no further than the first one."""
    return src.is_dir() and any(is_image(path) for _, path in _files(src))


def has_loose_images(src: Path) -> bool:
    """Whether images lie in `src` itself, where no folder gives them a class."""
    return src.is_dir() and any(map(is_image, os.listdir(src)))


def list_images(src: Path) -> Source:
    """List the images below each class folder of `src`, in sorted order; hidden files and folders are left out. Raises
    ValueError if a class folder has no image, or links lead to one folder twice."""
    classes, images, others = class_names(src), [], []
    for label, path in _files(src):
        (images if is_image(path) else others).append((label, path))
    labels, paths = [label for label, _ in images], [path for _, path in images]
    empty = set(range(len(classes))).difference(labels)
    if empty:
        raise ValueError(
            f"each class folder must have images ({' '.join(EXTENSIONS)}), found none in "
            f"{str(src / classes[min(empty)])!r}: add some, or move the folder away"
        )
    if others:
        logger.warning("%d files without an image's ending are left out, the first is %r", len(others), others[0][1])
    try:
        sizes = np.fromiter((os.stat(path).st_size for path in paths), np.int64, count=len(paths))
    except OSError as error:
        raise ValueError(f"every image must be readable, found {error}: repair or remove the file") from error
    labels = np.array(labels, np.int64)
    return Source("ImageFolder", tuple(classes), labels, paths, sizes, lambda i: Path(paths[i]).read_bytes())


def class_names(src: Path) -> list[str]:
    """Names of the class folders of `src`, in label order."""
    return sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))


def _files(src: Path) -> Iterator[tuple[int, str]]:
    """The number of a class, and the path of a file below its folder, of each file that is not hidden, in sorted order.
    Raises ValueError if a link leads to a folder that was visited already, because its images would be listed twice,
    perhaps as two classes."""
    stat = os.stat(src)
    visited = {(stat.st_dev, stat.st_ino): str(src)}
    for label, class_name in enumerate(class_names(src)):
        for root, folders, names in os.walk(src / class_name, followlinks=True):
            stat = os.stat(root)
            before = visited.setdefault((stat.st_dev, stat.st_ino), root)
            if before != root:
                raise ValueError(
                    f"each folder of images must be listed once, found {before!r} again as {root!r}: remove the link"
                )
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield from ((label, os.path.join(root, name)) for name in sorted(names) if not name.startswith("."))
