"""Pillow's Gaussian blur: three box blurs along the rows, then three along the columns, each rounded to uint8.

A box of fractional radius has whole weights (`ww`) inside and smaller ones (`fw`) on the pixel at either end, as 24-bit
fixed point. Radii here stay below 2, so a box reaches at most two pixels to each side. Bit-exact, on any device.
"""

import numpy as np
import torch
from torch import Tensor

PASSES = 3
MAX_RADIUS = 2.0


def box_weights(radii_N: np.ndarray) -> np.ndarray:
    """Compute the weights of the centre, of both pixels next to it, and of both pixels two away: int32 [N, 3].

    The box radius is the one whose threefold use has the Gaussian's variance (Gwosdek et al., "Theoretical foundations
    of Gaussian convolution by extended box filtering"), in float32 as in Pillow.

    Args:
        radii_N: the Gaussian's standard deviation in pixels, 0 to MAX_RADIUS.
    """
    one = np.float32(1)
    variance_N = (radii_N.astype(np.float32) ** 2 / np.float32(PASSES)).astype(np.float32)
    length_N = np.sqrt(12.0 * variance_N.astype(np.float64) + 1.0).astype(np.float32)
    whole_N = np.floor((length_N.astype(np.float64) - 1.0) / 2.0).astype(np.float32)
    part_N = (2 * whole_N + one) * (whole_N * (whole_N + one) - 3 * variance_N)
    part_N = part_N / (6 * (variance_N - (whole_N + one) * (whole_N + one)))
    inside_N = (np.float32(1 << 24) / ((whole_N + part_N) * 2 + one)).astype(np.int64)
    end_N = ((1 << 24) - (2 * whole_N.astype(np.int64) + 1) * inside_N) // 2
    is_wide_N = whole_N >= 1
    weights = [inside_N, np.where(is_wide_N, inside_N, end_N), np.where(is_wide_N, end_N, 0)]
    return np.stack(weights, 1).astype(np.int32)


def _blur_rows(wide_BHN: Tensor, weights_B3: Tensor, channels: int) -> Tensor:
    """Blur once along the last axis, whose neighbours lie `channels` apart; int32 [B, H, N], 0 to 255."""
    first, last = wide_BHN[:, :, :channels], wide_BHN[:, :, -channels:]
    padded = torch.cat([first, first, wide_BHN, last, last], 2)
    far_left, left, centre, right, far_right = (
        padded[:, :, tap * channels : tap * channels + wide_BHN.shape[2]] for tap in range(5)
    )
    inside, near, far = weights_B3[:, :, None, None].unbind(1)
    # The sum may pass 2**31, but not 2**32: int32 wraps, and the mask takes the sign's copies off after the shift.
    total = (inside * centre).add_((left + right).mul_(near)).add_((far_left + far_right).mul_(far))
    return total.add_(1 << 23).bitwise_right_shift_(24).bitwise_and_(255)


def gaussian_blur(pixels_BHWC: Tensor, weights_B3: Tensor) -> Tensor:
    """Blur each image with its own weights (`box_weights`): uint8 [B, H, W, 3] to uint8, edges repeated outwards."""
    num_images, height, width, channels = pixels_BHWC.shape
    wide = pixels_BHWC.view(num_images, height, width * channels).int()
    for _ in range(PASSES):
        wide = _blur_rows(wide, weights_B3, channels)
    wide = wide.view(num_images, 1, height * width * channels)  # the neighbours of a column lie a row apart
    for _ in range(PASSES):
        wide = _blur_rows(wide, weights_B3, width * channels)
    return wide.to(torch.uint8).view(pixels_BHWC.shape)
