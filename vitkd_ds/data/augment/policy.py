"""Draw each image's augmentation operations and the rectangle to erase.

All random numbers come from the image's random key (`vitkd_ds.data.draws`). This module uses only NumPy. It therefore
never waits for a GPU, and settings can be checked without torch. Each augmentation except erasing is a list of `Layer`
objects: as many as the setting n for RandAugment, one for 3-Augment, and three for colour jitter. Two options of timm
that no published recipe uses are not supported: weighted operations and uniform magnitudes.
"""

import math
import re
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from vitkd_ds.config.part import require
from vitkd_ds.data.draws import AUGMENT_DRAWS, normal, uniform

RAND_AUGMENT_OPS = (
    *"AutoContrast Equalize Invert Rotate Posterize Solarize SolarizeAdd Color Contrast Brightness Sharpness".split(),
    *"ShearX ShearY TranslateXRel TranslateYRel".split(),
)
"""RandAugment's operations, in timm's order. timm adds "Increasing" to some of these names if inc is set."""
OPS = (*RAND_AUGMENT_OPS, "GaussianBlur")
NO_OP = -1
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
LEVELS = 10.0
"""Magnitude that gives an operation its full strength."""
SIGNED_RANGES = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
"""Argument at full magnitude: degrees to rotate, pixels per pixel to shear, fraction of the width or height to move."""
JITTER_ORDERS = tuple(permutations(("Brightness", "Contrast", "Color")))
MIN_AREA, MAX_AREA = 0.02, 1 / 3
LOG_ASPECT = math.log(1 / 0.3)
ERASING_TRIES = 10

MAX_LAYERS, DRAWS_PER_LAYER, DRAWS_PER_TRY = 16, 8, 4
RAND_AUGMENT_DRAWS = AUGMENT_DRAWS
THREE_AUGMENT_DRAWS = RAND_AUGMENT_DRAWS + MAX_LAYERS * DRAWS_PER_LAYER
COLOR_JITTER_DRAWS = THREE_AUGMENT_DRAWS + 8
ERASING_DRAWS = COLOR_JITTER_DRAWS + 8
NOISE_DRAWS = 1 << 20
"""Index of the first random number for each purpose (see `vitkd_ds.data.draws`).

Erasing uses 1 + ERASING_TRIES * DRAWS_PER_TRY random numbers, and its noise one per four bytes of the image.
"""


@dataclass(frozen=True)
class RandAugment:
    """RandAugment's settings; the defaults are timm's."""

    magnitude: float = 10
    num_layers: int = 2
    probability: float = 0.5
    """Probability that a layer is applied to an image."""
    magnitude_std: float = 0.0
    magnitude_max: int = 10
    is_increasing: bool = False
    """Whether Posterize, Solarize and `ENHANCEMENTS` get stronger with the magnitude, as other operations always do."""


@dataclass(frozen=True)
class Layer:
    """One operation for each image of a micro-batch."""

    op_B: np.ndarray
    """Index of each image's operation in OPS, or NO_OP."""
    argument_B: np.ndarray
    """Argument of each operation, float64: degrees, factor, bits, threshold or radius; 0 if it has no argument."""
    is_cubic_B: np.ndarray
    """Whether a geometric operation interpolates bicubically; if not, it interpolates bilinearly."""

    def members(self, op: str) -> np.ndarray:
        """Return the micro-batch positions of the images with this operation."""
        return np.flatnonzero(self.op_B == OPS.index(op))


PARTS = {
    "m": ("magnitude", int),
    "n": ("num_layers", int),
    "p": ("probability", float),
    "mstd": ("magnitude_std", float),
    "mmax": ("magnitude_max", int),
    "inc": ("is_increasing", int),
}
"""Maps each key of timm's notation to the name and type of a field of `RandAugment`."""


def parse_rand_augment(text: str) -> RandAugment:
    """Parse timm's notation, such as rand-m9-mstd0.5-inc1.

    **Differs** from timm: unknown parts of the text, which timm ignores, are errors. So are repeated parts, weights (w,
    t), and a magnitude_std above 100, which means uniform magnitudes in timm.

    Raises:
        ValueError: the text is not valid.
    """
    key = "augment.rand_augment"
    settings = {}
    head, *parts = text.split("-")
    require(head == "rand", key, text, "start with rand-, such as rand-m9-mstd0.5-inc1")
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        known = match is not None and match[1] in PARTS
        require(known, key, text, f"have the parts {' '.join(PARTS)}, each with a number, and no part {part!r}")
        name, convert = PARTS[match[1]]
        require(name not in settings, key, text, f"have each part only once, but {match[1]} is repeated")
        require(convert is float or match[2].isdigit(), key, text, f"have a whole number in {part!r}")
        settings[name] = convert(match[2])
    policy = RandAugment(**settings)
    require(1 <= policy.num_layers <= MAX_LAYERS, key, text, f"have n from 1 to {MAX_LAYERS}")
    require(policy.probability <= 1, key, text, "have p from 0 to 1")
    require(policy.magnitude_std <= 100, key, text, "have mstd from 0 to 100; uniform magnitudes are not supported")
    require(policy.magnitude_max >= 1, key, text, "have mmax of 1 or more")
    require(policy.is_increasing in (0, 1), key, text, "have inc0 or inc1")
    return policy


def level_arguments(op: str, magnitudes_N: np.ndarray, is_negative_N: np.ndarray, *, is_increasing: bool) -> np.ndarray:
    """Return an operation's argument at each magnitude, as timm's level functions compute it: float64 [N].

    `is_negative_N` selects the sign. It matters only for geometric operations, and for `ENHANCEMENTS` if
    `is_increasing` is True. The sign then decides whether the factor of an enhancement is above or below 1.

    Args:
        op: one of RAND_AUGMENT_OPS.
    """
    level_N = magnitudes_N / LEVELS
    sign_N = np.where(is_negative_N, -1.0, 1.0)
    if op in SIGNED_RANGES:
        return sign_N * (level_N * SIGNED_RANGES[op])
    if op in ENHANCEMENTS:
        return np.maximum(0.1, 1.0 + sign_N * (level_N * 0.9)) if is_increasing else level_N * 1.8 + 0.1
    if op == "Posterize":
        bits_N = np.trunc(level_N * 4)
        return 4 - bits_N if is_increasing else bits_N
    if op == "Solarize":
        threshold_N = np.minimum(256, np.trunc(level_N * 256))
        return 256 - threshold_N if is_increasing else threshold_N
    if op == "SolarizeAdd":
        return np.minimum(128, np.trunc(level_N * 110))
    return np.zeros_like(level_N)


def draw_rand_augment(keys_B: np.ndarray, policy: RandAugment, *, interpolation: str) -> list[Layer]:
    """Draw RandAugment's layers for the images of a micro-batch.

    Operations are drawn uniformly with replacement. Magnitudes are drawn from N(m, mstd) and clipped to [0, mmax].

    Args:
        interpolation: bilinear, bicubic, or random, which chooses one of the two with equal probability for each image
            and layer.
    """
    layers = []
    for first in range(RAND_AUGMENT_DRAWS, RAND_AUGMENT_DRAWS + policy.num_layers * DRAWS_PER_LAYER, DRAWS_PER_LAYER):
        op_B = (uniform(keys_B, first) * len(RAND_AUGMENT_OPS)).astype(np.int64)
        magnitude_B = policy.magnitude + policy.magnitude_std * normal(keys_B, first + 2)
        magnitude_B = np.clip(magnitude_B, 0, policy.magnitude_max)
        is_negative_B = uniform(keys_B, first + 4) > 0.5
        argument_B = np.zeros(len(keys_B))
        for number, op in enumerate(RAND_AUGMENT_OPS):
            its = op_B == number
            is_increasing = policy.is_increasing
            argument_B[its] = level_arguments(op, magnitude_B[its], is_negative_B[its], is_increasing=is_increasing)
        op_B[uniform(keys_B, first + 1) >= policy.probability] = NO_OP
        is_cubic_B = uniform(keys_B, first + 5) < {"bilinear": 0.0, "random": 0.5, "bicubic": 1.0}[interpolation]
        layers.append(Layer(op_B, argument_B, is_cubic_B))
    return layers


def draw_three_augment(keys_B: np.ndarray) -> Layer:
    """Draw one of 3-Augment's operations for each image, with equal probabilities.

    The operations are greyscale (colour factor 0), solarize with threshold 128, and blur with a radius from U(0.1, 2).
    """
    choice_B = (uniform(keys_B, THREE_AUGMENT_DRAWS) * 3).astype(np.int64)
    op_B = np.array([OPS.index(op) for op in ("Color", "Solarize", "GaussianBlur")])[choice_B]
    radius_B = 0.1 + 1.9 * uniform(keys_B, THREE_AUGMENT_DRAWS + 1)
    return Layer(op_B, np.choose(choice_B, [0.0, 128.0, radius_B]), np.zeros(len(keys_B), bool))


def draw_color_jitter(keys_B: np.ndarray, strength: float) -> list[Layer]:
    """Draw the factors of brightness, contrast and saturation from U(1 - strength, 1 + strength), and their order."""
    orders = np.array([[OPS.index(op) for op in order] for order in JITTER_ORDERS])
    order_B3 = orders[(uniform(keys_B, COLOR_JITTER_DRAWS) * len(orders)).astype(np.int64)]
    factors = np.ones((len(OPS), len(keys_B)))
    for draw, op in enumerate(JITTER_ORDERS[0], start=COLOR_JITTER_DRAWS + 1):
        factors[OPS.index(op)] = 1 - strength + 2 * strength * uniform(keys_B, draw)
    no_cubic = np.zeros(len(keys_B), bool)
    return [Layer(op_B, factors[op_B, np.arange(len(keys_B))], no_cubic) for op_B in order_B3.T]


def draw_rectangles(keys_B: np.ndarray, *, probability: float, height: int, width: int) -> np.ndarray:
    """Draw the rectangles of random erasing, as timm does.

    The area of a rectangle is U(2 %, 1/3) of the image's area, its height / width is log-uniform in (0.3, 1 / 0.3), and
    its position is uniform. At most ten rectangles are drawn for an image. The first one that is smaller than the image
    in both height and width is used. If there is none, the image is unchanged.

    Returns:
        int64 [B, 4]: top, left, height and width of each image's rectangle in pixels, or four zeros if nothing is
        erased.
    """
    chosen_B = uniform(keys_B, ERASING_DRAWS) < probability
    box_B4 = np.zeros((len(keys_B), 4), np.int64)
    for first in range(ERASING_DRAWS + 1, ERASING_DRAWS + 1 + ERASING_TRIES * DRAWS_PER_TRY, DRAWS_PER_TRY):
        area_B = height * width * (MIN_AREA + (MAX_AREA - MIN_AREA) * uniform(keys_B, first))
        aspect_B = np.exp(LOG_ASPECT * (2 * uniform(keys_B, first + 1) - 1))
        rows_B, columns_B = np.rint(np.sqrt(area_B * aspect_B)), np.rint(np.sqrt(area_B / aspect_B))
        top_B = np.floor(uniform(keys_B, first + 2) * (height - rows_B + 1))
        left_B = np.floor(uniform(keys_B, first + 3) * (width - columns_B + 1))
        fits_B = (rows_B < height) & (columns_B < width) & (box_B4[:, 2:] == 0).all(1)
        box_B4[fits_B] = np.stack([top_B, left_B, rows_B, columns_B], 1)[fits_B]
    are_erased_B = chosen_B & (box_B4[:, 2:] > 0).all(1)
    return np.where(are_erased_B[:, None], box_B4, 0)
