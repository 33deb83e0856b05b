"""Tiny generated images and .beton files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitkd_ds.commands.pack import pack

SIZES = ((40, 30), (30, 40), (64, 64), (17, 90), (100, 33))
"""Widths and heights of the images, used in turn: all different, some beyond the crop's aspect ratio."""


def write_images(root: Path, num_images: int, *, classes: tuple[str, ...] = ("a", "b"), ending: str = "png") -> Path:
    """Write images, each with its own smooth ramp, to the classes in turn; return the folder."""
    for name in classes:
        (root / name).mkdir(parents=True)
    for i in range(num_images):
        width, height = SIZES[i % len(SIZES)]
        ramp_W, ramp_H = np.linspace(0, 200, width), np.linspace(0, 50, height)
        channels = [np.full((height, width), 20 * i % 256), ramp_H[:, None] + ramp_W, ramp_H[:, None] + 0 * ramp_W]
        pixels = np.stack(channels, axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(root / classes[i % len(classes)] / f"{i:03d}.{ending}")
    return root


def write_beton(root: Path, num_images: int, **options) -> Path:
    """Pack such images as root/x.beton; return its path."""
    return pack(write_images(root / "images", num_images), root / "x.beton", workers=1, **options).path


@pytest.fixture(scope="session")
def beton(tmp_path_factory) -> Path:
    """Return a .beton of 22 JPEG images of mixed sizes in two classes."""
    return write_beton(tmp_path_factory.mktemp("beton"), 22)
