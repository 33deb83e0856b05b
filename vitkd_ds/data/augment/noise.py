"""Noise of random erasing, with a normal distribution and the model's mean and std.

For each byte, a hash of the image's random key and the byte's index gives 16 random bits. A table of quantiles of the
normal distribution maps these bits to a pixel value, called level. The noise therefore does not depend on a random
generator, thread, device or math library.

**Differs** from timm's mode "pixel", which draws N(0, 1) after normalisation. Mean and standard deviation are the same,
but here the images are uint8, so the noise is rounded and clipped to 0..255. With ImageNet's mean and standard
deviation, about 3 % of the noise is clipped.

**Differs** from the code of ViTKD (mmcls, mode "rand" with a fill_std), which also clips the noise, but truncates it
instead of rounding. Its noise is half a level darker on average.
"""

import functools
from statistics import NormalDist

import numpy as np

from vitkd_ds.data.augment.policy import NOISE_DRAWS
from vitkd_ds.data.colours import Statistics
from vitkd_ds.data.draws import draw_bits

RECTANGLE_DTYPE = np.dtype([("key", "<u8"), ("top", "<i4"), ("left", "<i4"), ("height", "<i4"), ("width", "<i4")])
"""Rectangle to erase in one image, in pixels, and the image's random key.

If the height is 0, nothing is erased. `Rectangle` in `csrc/augment.h` has the same fields.
"""
NUM_QUANTILES = 1 << 16


@functools.cache
def _quantiles() -> np.ndarray:
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / NUM_QUANTILES) for i in range(NUM_QUANTILES)])


def noise_levels(statistics: Statistics) -> np.ndarray:
    """Return, for each colour, a table that maps 16 random bits to a level: uint8 [3, NUM_QUANTILES]."""
    mean_3, std_3 = (255 * np.asarray(values, np.float64)[:, None] for values in statistics)
    return np.clip(np.rint(mean_3 + std_3 * _quantiles()), 0, 255).astype(np.uint8)


def erase(image_HWC: np.ndarray, rectangle: np.void, levels: np.ndarray) -> None:
    """Fill a rectangle (RECTANGLE_DTYPE) of a uint8 image with noise, in place."""
    top, left, height, width = (int(rectangle[name]) for name in ("top", "left", "height", "width"))
    inside = np.s_[top : top + height, left : left + width]
    byte_HWC = np.arange(image_HWC.size).reshape(image_HWC.shape)[inside]
    bits_HWC = draw_bits(rectangle["key"], NOISE_DRAWS + byte_HWC // 4) >> (16 * (byte_HWC % 4)).astype(np.uint64)
    image_HWC[inside] = levels[np.arange(3), bits_HWC & np.uint64(NUM_QUANTILES - 1)]
