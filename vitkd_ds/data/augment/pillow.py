"""Augment Pillow images with timm's operations, for the torchvision backend.

This is slower than the compiled code, but gives the same bits.
"""

import numpy as np
from PIL import Image, ImageFilter
from timm.data.auto_augment import NAME_TO_OP

from vitkd_ds.data.augment.augmenter import Plan
from vitkd_ds.data.augment.noise import erase
from vitkd_ds.data.augment.policy import NO_OP, OPS

WHOLE = ("Posterize", "Solarize", "SolarizeAdd")
"""Operations whose argument timm truncates to an integer."""
WITHOUT_ARGUMENT = ("AutoContrast", "Equalize", "Invert")


def augment(image_HWC: np.ndarray, plan: Plan, number: int) -> np.ndarray:
    """Return an image (uint8 [H, W, 3]) augmented as the plan says for image `number` of its micro-batch."""
    image = Image.fromarray(image_HWC)
    for layer in plan.layers:
        if layer.op_B[number] != NO_OP:
            name = OPS[layer.op_B[number]]
            argument = float(layer.argument_B[number])
            image = _operate(name, image, argument, is_cubic=bool(layer.is_cubic_B[number]), fill=plan.fill)
    result_HWC = np.array(image)
    if plan.rectangles["height"][number]:
        erase(result_HWC, plan.rectangles[number], plan.levels)
    return result_HWC


def _operate(name: str, image: Image.Image, argument: float, *, is_cubic: bool, fill: tuple) -> Image.Image:
    if name == "GaussianBlur":
        return image.filter(ImageFilter.GaussianBlur(argument))
    if name == "Posterize" and argument <= 0:
        return Image.new("RGB", image.size)  # Pillow 13 raises an error; older versions return black
    arguments = [] if name in WITHOUT_ARGUMENT else [int(argument) if name in WHOLE else argument]
    resample = Image.Resampling.BICUBIC if is_cubic else Image.Resampling.BILINEAR
    return NAME_TO_OP[name](image, *arguments, resample=resample, fillcolor=fill)
