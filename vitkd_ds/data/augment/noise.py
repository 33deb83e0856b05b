"""Random erasing's noise: each pixel and colour a normal number with the model's mean and std, in levels.

A byte's 16 random bits are a hash of the image's key and of the byte's number in the image, and become a level by a
table of the normal distribution's quantiles. So the noise depends on no generator, thread, device or library of
mathematical functions.

**Differs** from timm's mode "pixel", which puts N(0, 1) on normalised pixels: the same mean and std, but here rounded
and clipped to 0 to 255, as the pipeline is uint8; with ImageNet's about 3 % of the noise is clipped.
**Differs** from the method's code (mmcls, mode "rand" with a fill_std), which clips but truncates: half a level darker.
"""

import functools
from statistics import NormalDist

import numpy as np

from vitkd_ds.data.augment.policy import NOISE_DRAWS
from vitkd_ds.data.colours import Statistics
from vitkd_ds.data.draws import draw_bits

RECTANGLE_DTYPE = np.dtype([("key", "<u8"), ("top", "<i4"), ("left", "<i4"), ("height", "<i4"), ("width", "<i4")])
"""What is erased of one image, in pixels, and the image's key; nothing if the height is 0. The C struct of
`csrc/augment.h` has the same fields."""
NUM_QUANTILES = 1 << 16


@functools.cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / NUM_QUANTILES) for i in range(NUM_QUANTILES)])


def noise_levels(statistics: Statistics) -> np.ndarray:
    """Make the level of each colour that 16 random bits become: uint8 [3, NUM_QUANTILES]."""
    mean_3, std_3 = (255 * np.asarray(values, np.float64)[:, None] for values in statistics)
    return np.clip(np.rint(mean_3 + std_3 * _quantiles()), 0, 255).astype(np.uint8)


def erase(image_HWC: np.ndarray, rectangle: np.void, levels: np.ndarray) -> None:
    """Replace a rectangle (RECTANGLE_DTYPE) of an image, uint8, by noise, in place."""
    top, left, height, width = (int(rectangle[name]) for name in ("top", "left", "height", "width"))
    inside = np.s_[top : top + height, left : left + width]
    byte_HWC = np.arange(image_HWC.size).reshape(image_HWC.shape)[inside]
    bits_HWC = draw_bits(rectangle["key"], NOISE_DRAWS + byte_HWC // 4) >> (16 * (byte_HWC % 4)).astype(np.uint64)
    image_HWC[inside] = levels[np.arange(3), bits_HWC & np.uint64(NUM_QUANTILES - 1)]
