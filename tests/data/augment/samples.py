"""Images and plans for comparing augmentations with Pillow, and the same operations in Pillow."""

import numpy as np
from PIL import Image, ImageFilter
from timm.data import auto_augment

from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment.augmenter import Augmenter, Plan
from vitkd_ds.data.augment.noise import RECTANGLE_DTYPE, noise_levels
from vitkd_ds.data.augment.operations import operations_of
from vitkd_ds.data.augment.policy import NO_OP, OPS, Layer
from vitkd_ds.data.beton import decode
from vitkd_ds.data.colours import IMAGENET
from vitkd_ds.data.order import SAMPLE_DTYPE

FILL = (124, 116, 104)
"""ImageNet's mean colour with timm's rounding."""
SIZES = ((224, 224), (28, 28), (33, 47), (5, 3), (3, 3), (2, 9), (2, 2), (1, 1))
"""Heights and widths: a model's, the demo's, a non-square one with odd sides, and extreme ones."""


def pixels(height=33, width=47, copies=1):
    """Return noise, a smooth low-contrast picture, flat colours, and half black, half white; uint8 [4 * copies, H, W,
    3]."""
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (height, width, 3))
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    smooth = np.stack([120 + 60 * np.sin(x + 2 * y), 100 + 40 * np.cos(3 * x), 90 + 20 * x * y], -1)
    flat = np.broadcast_to([255, 7, 130], (height, width, 3))
    halves = np.where(x[..., None] < 1.5, 0, 255) * np.ones(3)
    return np.tile(np.stack([noise, smooth, flat, halves]).astype(np.uint8), (copies, 1, 1, 1))


def samples(count, epoch=0, repeat=0):
    """Return samples for the first images of a file."""
    rows = np.zeros(count, SAMPLE_DTYPE)
    rows["index"], rows["epoch"], rows["repeat"] = np.arange(count), epoch, repeat
    return rows


def plan_of(images, chosen, *, seed=5, statistics=IMAGENET, **config):
    """Draw the augmentation plan of the images."""
    augmenter = Augmenter(AugmentConfig(**config), seed=seed, statistics=statistics)
    return augmenter.plan(chosen, height=images.shape[1], width=images.shape[2])


def augmented(images, plan):
    """Return a copy of the images, augmented by the compiled code."""
    result = images.copy()
    decode.augment(result, plan)
    return result


def operate(op, images, arguments, is_cubic=False):
    """Apply one operation to each image with the compiled code."""
    size = {"height": images.shape[1], "width": images.shape[2]}
    layer = Layer(np.full(len(images), OPS.index(op)), np.array(arguments, float), np.full(len(images), is_cubic))
    rectangles = np.zeros(len(images), RECTANGLE_DTYPE)
    rows = operations_of([layer], len(images), **size)
    return augmented(images, Plan([layer], rows, rectangles, noise_levels(IMAGENET), FILL))


def by_timm(op, image, argument, is_cubic=False, fill=FILL):
    """Apply one operation to a Pillow image with timm and Pillow."""
    if op == "GaussianBlur":
        return image.filter(ImageFilter.GaussianBlur(argument))
    if op == "Posterize" and argument <= 0:
        return Image.new("RGB", image.size)  # Pillow 13 stops there
    arguments = [int(argument) if op in ("Posterize", "Solarize", "SolarizeAdd") else argument]
    if op in ("AutoContrast", "Equalize", "Invert"):
        arguments = []
    resample = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR
    return auto_augment.NAME_TO_OP[op](image, *arguments, resample=resample, fillcolor=fill)


def layers_by_timm(images, plan):
    """Apply all layers of a plan with timm and Pillow."""
    results = []
    for i, pixels_HWC in enumerate(images):
        image = Image.fromarray(pixels_HWC)
        for layer in plan.layers:
            if layer.op_B[i] != NO_OP:
                settings = float(layer.argument_B[i]), bool(layer.is_cubic_B[i]), plan.fill
                image = by_timm(OPS[layer.op_B[i]], image, *settings)
        results.append(np.asarray(image))
    return np.stack(results)
