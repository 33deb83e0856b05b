"""Random erasing: rectangles of noise, each pixel and channel a normal number with ImageNet's mean and std, in levels.

The noise is a hash of the image's key and the byte's number in the image, computed on the device. So it does not depend
on the micro-batch, nor on the device but for the last bit of log and cos, which rounding to whole levels hides nearly
always. Only the rectangles' bytes are computed, those of all images in one list.

**Differs** from timm's mode "pixel", which puts N(0, 1) on normalised pixels: the same mean and std, but here rounded
and clipped to 0 to 255, as the pipeline is uint8; about 3 % of the noise is clipped.
**Differs** from the method's code (mmcls, mode "rand" with a fill_std), which clips but truncates: half a level darker.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.data.augment.policy import NOISE_DRAWS

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def _signed(number: int) -> int:
    """Return the int64 with the same 64 bits: torch has no unsigned arithmetic."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(x_N: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right without its sign, as a new tensor."""
    return (x_N >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def hash_draws(keys_N: Tensor, draws_N: Tensor) -> Tensor:
    """Make the 64 bits that `vitkd_ds.data.draws` makes of keys and draw numbers: int64 [N]; overflow is meant."""
    x_N = (draws_N * _signed(0xD1B54A32D192ED03)).add_(keys_N).add_(_signed(0x9E3779B97F4A7C15))
    x_N = _shift_right(x_N, 30).bitwise_xor_(x_N).mul_(_signed(0xBF58476D1CE4E5B9))
    x_N = _shift_right(x_N, 27).bitwise_xor_(x_N).mul_(_signed(0x94D049BB133111EB))
    return _shift_right(x_N, 31).bitwise_xor_(x_N)


def normal_noise(keys_N: Tensor, draws_N: Tensor) -> Tensor:
    """Make a standard normal number of each key and draw number, by Box and Muller from 24 + 24 bits: float32 [N]."""
    bits_N = hash_draws(keys_N, draws_N)
    radius_N = (_shift_right(bits_N, 40).float() + 0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle_N = (_shift_right(bits_N, 16) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    return angle_N.cos_().mul_(radius_N)


def rectangle_table(rectangles_R5: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """Make what `erased_bytes` needs of each rectangle, int64 [4, R]: its first byte's number in the list of all
    rectangles' bytes, the bytes of one of its rows, its first byte's number in the image, and the image's first byte's
    number in the micro-batch."""
    member_R, top_R, left_R, height_R, width_R = rectangles_R5.T
    row_R = 3 * width_R
    bytes_R, corner_R = height_R * row_R, 3 * (top_R * width + left_R)
    return np.stack([np.cumsum(bytes_R) - bytes_R, row_R, corner_R, 3 * height * width * member_R])


def erased_bytes(owner_N: Tensor, table_4R: Tensor, keys_R: Tensor, *, width: int) -> tuple[Tensor, Tensor]:
    """Make the noise of all rectangles: place in the micro-batch's bytes, int64 [N], and level, uint8 [N].

    Args:
        owner_N: number of the rectangle that each byte of the list belongs to, int64.
        table_4R: see `rectangle_table`.
        keys_R: of the rectangles' images, as int64.
        width: of the images, in pixels.
    """
    first_N, row_N, corner_N, image_N = (column_R.index_select(0, owner_N) for column_R in table_4R)
    position_N = torch.arange(len(owner_N), device=owner_N.device) - first_N
    whole_rows_N = position_N // row_N
    byte_N = (3 * width - row_N).mul_(whole_rows_N).add_(position_N).add_(corner_N)
    channel_N = (byte_N % 3).to(torch.int8)
    mean_N, std_N = (
        torch.where(channel_N == 0, of[0], torch.where(channel_N == 1, of[1], of[2])) for of in (MEAN, STD)
    )
    noise_N = normal_noise(keys_R.index_select(0, owner_N), NOISE_DRAWS + byte_N)
    noise_N = noise_N.mul_(std_N).add_(mean_N).round_().clamp_(0, 255).to(torch.uint8)
    return image_N.add_(byte_N), noise_N
