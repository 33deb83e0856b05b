"""Convert the drawn operations to the format of the compiled code."""

import math

import numpy as np

from vitkd_ds.data.augment.policy import SIGNED_RANGES, Layer
from vitkd_ds.data.crops import BICUBIC, BILINEAR

OPERATION_DTYPE = np.dtype([("op", "<i4"), ("filter", "<i4"), ("arguments", "<f8", 6)])
"""One operation on one image: its index in OPS, the filter of a geometric operation, and its arguments.

A geometric operation has Pillow's six affine coefficients as arguments, GaussianBlur its three `box_weights`, and any
other operation the single argument of its layer. `Operation` in `csrc/augment.h` has the same fields.
"""
BLUR_PASSES = 3


def operations_of(layers: list[Layer], num_images: int, *, height: int, width: int) -> np.ndarray:
    """Convert the layers of a micro-batch; return OPERATION_DTYPE [num_images, layers].

    Args:
        height, width: size of the images in pixels.
    """
    rows = np.zeros((num_images, len(layers)), OPERATION_DTYPE)
    for number, layer in enumerate(layers):
        its = rows[:, number]
        its["op"] = layer.op_B
        its["filter"] = np.where(layer.is_cubic_B, BICUBIC, BILINEAR)
        its["arguments"][:, 0] = layer.argument_B
        for op in SIGNED_RANGES:
            for i in layer.members(op).tolist():
                its["arguments"][i] = _affine(op, float(layer.argument_B[i]), height=height, width=width)
        blurred = layer.members("GaussianBlur")
        its["arguments"][blurred, :3] = box_weights(layer.argument_B[blurred])
    return rows


def _affine(op: str, argument: float, *, height: int, width: int) -> tuple[float, ...]:
    """Return an operation's six affine coefficients, computed and rounded as in Pillow.

    Rotations are counter-clockwise about the centre.
    """
    if op == "Rotate":
        radians = -math.radians(argument % 360.0)
        cos, sin = round(math.cos(radians), 15), round(math.sin(radians), 15)
        x, y = width / 2, height / 2
        return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
    matrices = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateXRel": (1, 0, argument * width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, argument * height),
    }
    return matrices[op]


def box_weights(radii_N: np.ndarray) -> np.ndarray:
    """Compute the weights of the box blur that Pillow applies three times to approximate a Gaussian blur.

    A box with a fractional radius has equal weights inside and smaller weights on the two end pixels. Its radius
    is chosen so that three passes have the variance of the Gaussian (Gwosdek et al., "Theoretical foundations of
    Gaussian convolution by extended box filtering"). The computation is in float32, as in Pillow.

    Args:
        radii_N: standard deviations of the Gaussian in pixels, from 0 to 2. With a larger one, a box would reach beyond
            two pixels.

    Returns:
        Weights of the centre pixel, of the pixels next to it, and of the pixels two away from it: 24-bit fixed-point
        integers [N, 3].
    """
    one = np.float32(1)
    variance_N = (radii_N.astype(np.float32) ** 2 / np.float32(BLUR_PASSES)).astype(np.float32)
    length_N = np.sqrt(12.0 * variance_N.astype(np.float64) + 1.0).astype(np.float32)
    whole_N = np.floor((length_N.astype(np.float64) - 1.0) / 2.0).astype(np.float32)
    part_N = (2 * whole_N + one) * (whole_N * (whole_N + one) - 3 * variance_N)
    part_N = part_N / (6 * (variance_N - (whole_N + one) * (whole_N + one)))
    inside_N = (np.float32(1 << 24) / ((whole_N + part_N) * 2 + one)).astype(np.int64)
    end_N = ((1 << 24) - (2 * whole_N.astype(np.int64) + 1) * inside_N) // 2
    is_wide_N = whole_N >= 1
    return np.stack([inside_N, np.where(is_wide_N, inside_N, end_N), np.where(is_wide_N, end_N, 0)], 1)
