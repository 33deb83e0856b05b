"""Reading a folder of images: which files there are, and each as RGB pixels.

Separate from packing so that what counts as an image, and how each colour mode becomes RGB, stands in one place.
EXIF orientation is ignored and transparency is dropped, both as torchvision's ImageFolder does, on which published
accuracies rest.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings that make a file an image, in any case; torchvision's list."""
SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ImageFolder:
    """The images of a tree with one folder per class."""

    classes: tuple[str, ...]
    """Folder names in sorted order; the position is the label."""
    paths: tuple[str, ...]
    labels: tuple[int, ...]


def list_images(src: Path) -> ImageFolder:
    """List the images below each class folder of `src`, in sorted order; hidden files and folders are left out.

    Raises:
        ValueError: `src` is no folder, or has no class folder, or a class folder has no image.
    """
    if not src.is_dir():
        what = "a file" if src.exists() else "nothing"
        raise ValueError(f"src must be a folder of class folders, found {what} at {str(src)!r}: give such a folder")
    classes = sorted(entry.name for entry in os.scandir(src) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise ValueError(f"src must have a folder per class, found none in {str(src)!r}: sort the images into such")
    paths, labels, others = [], [], []
    for label, name in enumerate(classes):
        found, ignored = _images_below(src / name)
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
    return ImageFolder(tuple(classes), tuple(paths), tuple(labels))


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the images in `folder` and its subfolders, and of the other files; links are followed."""
    images, others = [], []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            is_image = os.path.splitext(name)[1].lower() in EXTENSIONS
            (images if is_image else others).append(os.path.join(root, name))
    return images, others


def load_rgb(path: str) -> np.ndarray:
    """Decode one image file.

    Returns:
        uint8 [height, width, 3].

    Raises:
        Exception: of Pillow's many kinds, when the file is damaged or no image; ValueError for 32-bit pixels.
    """
    with Image.open(path) as image:
        if image.mode in SIXTEEN_BIT_MODES:
            return _from_16_bit(np.array(image))
        if image.mode == "F":
            raise ValueError("its pixels are 32-bit floats, whose white is not defined")
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # straight to RGB, Pillow warns
        return np.array(image.convert("RGB"))


def _from_16_bit(grey_HW: np.ndarray) -> np.ndarray:
    """Keep the upper 8 of 16 bits: Pillow's own conversion clips instead, and everything turns white."""
    if grey_HW.min() < 0 or grey_HW.max() > 65535:
        raise ValueError(f"its pixels must be 16-bit, found {grey_HW.min()} to {grey_HW.max()}")
    return np.repeat((grey_HW.astype(np.uint16) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)


def image_size(path: str) -> tuple[int, int]:
    """Width and height from the header of an image file, or (0, 0) if it cannot be opened."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # a bad file is reported where it is decoded
        return 0, 0
