"""Images that the augmentations are compared on, and the way to Pillow and back."""

import numpy as np
import torch
from PIL import Image, ImageFilter
from timm.data import auto_augment

from vitkd_ds.data.augment.affine import FILL

SIZES = ((224, 224), (28, 28), (33, 47))
"""Heights and widths: a model's, the demo's, and one that is neither square nor even."""


def pixels(height, width):
    """Noise, a smooth picture with little contrast, flat colours, half black and half white; uint8 [4, H, W, 3]."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (height, width, 3))
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    smooth = np.stack([120 + 60 * np.sin(x + 2 * y), 100 + 40 * np.cos(3 * x), 90 + 20 * x * y], -1)
    flat = np.broadcast_to([255, 7, 130], (height, width, 3))
    halves = np.where(x[..., None] < 1.5, 0, 255) * np.ones(3)
    return torch.from_numpy(np.stack([noise, smooth, flat, halves]).astype(np.uint8))


def micro_batch(height=33, width=47, copies=1):
    """`pixels` as channels_last [4 * copies, 3, H, W]."""
    return pixels(height, width).repeat(copies, 1, 1, 1).permute(0, 3, 1, 2)


def in_pillow(pixels_BHWC, function):
    """Give each image to `function` as a Pillow image; `function` also gets its number."""
    results = [function(Image.fromarray(image.numpy()), i) for i, image in enumerate(pixels_BHWC)]
    return torch.from_numpy(np.stack([np.asarray(result) for result in results]))


def by_timm(op, image, argument, is_cubic=False):
    """One operation on a Pillow image, as timm and Pillow do it."""
    if op == "GaussianBlur":
        return image.filter(ImageFilter.GaussianBlur(argument))
    if op == "Posterize" and argument <= 0:
        return Image.new("RGB", image.size)  # Pillow 13 stops there
    arguments = [int(argument) if op in ("Posterize", "Solarize", "SolarizeAdd") else argument]
    if op in ("AutoContrast", "Equalize", "Invert"):
        arguments = []
    resample = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR
    return auto_augment.NAME_TO_OP[op](image, *arguments, resample=resample, fillcolor=FILL)


def levels_apart(ours, theirs):
    """Largest difference in levels, and the part of all bytes that differ at all."""
    difference = (ours.int() - theirs.int()).abs()
    return int(difference.max()), float((difference > 0).float().mean())
