"""Random erasing: rectangles of noise, each pixel and channel a normal number with ImageNet's mean and std, in levels.

The noise is a hash of the image's key and the byte's number in the image, computed on the device, so it depends neither
on the micro-batch nor on the device (but for the last bit of log and cos, which rounding to whole levels hides nearly
always). Only the rectangles' bytes are computed, all images' in one list.

**Differs** from timm's mode "pixel", which puts N(0, 1) on normalised pixels: the same mean and std, but here rounded
and clipped to 0 to 255, as the pipeline is uint8; about 4 % of the noise is clipped.
"""

import math

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.data.augment.policy import NOISE_DRAWS, Rectangles

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def _signed(number: int) -> int:
    """The int64 with the same 64 bits: torch has no unsigned arithmetic."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(x_N: Tensor, bits: int) -> Tensor:
    """Logical shift of int64."""
    return (x_N >> bits) & ((1 << (64 - bits)) - 1)


def hash_draws(keys_N: Tensor, draws_N: Tensor) -> Tensor:
    """The same 64 bits as `vitkd_ds.data.draws` takes for these keys and draw numbers: int64 [N], overflow is meant."""
    x_N = keys_N + draws_N * _signed(0xD1B54A32D192ED03) + _signed(0x9E3779B97F4A7C15)
    x_N = (x_N ^ _shift_right(x_N, 30)) * _signed(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ _shift_right(x_N, 27)) * _signed(0x94D049BB133111EB)
    return x_N ^ _shift_right(x_N, 31)


def normal_noise(keys_N: Tensor, draws_N: Tensor) -> Tensor:
    """A standard normal number of each key and draw number, by Box and Muller from 24 + 24 bits: float32 [N]."""
    bits_N = hash_draws(keys_N, draws_N)
    radius_N = (_shift_right(bits_N, 40).float() + 0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle_N = (_shift_right(bits_N, 16) & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    return angle_N.cos_().mul_(radius_N)


def rectangle_rows(rectangles: Rectangles) -> tuple[np.ndarray, int]:
    """The rectangles as int64 [R, 5] (member, first byte of the list, top, left, width) and the number of bytes."""
    bytes_R = 3 * rectangles.height_R * rectangles.width_R
    first_R = np.cumsum(bytes_R) - bytes_R
    columns = [rectangles.members_R, first_R, rectangles.top_R, rectangles.left_R, rectangles.width_R]
    return np.stack(columns, 1), int(bytes_R.sum())


def erased_bytes(rows_N5: Tensor, keys_N: Tensor, *, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the noise goes and what it is.

    Args:
        rows_N5: the row of `rectangle_rows` that each byte of the list belongs to; keys_N: int64, likewise.

    Returns:
        Place in the micro-batch's bytes, int64 [N], and noise, uint8 [N].
    """
    member_N, first_N, top_N, left_N, columns_N = rows_N5.unbind(1)
    position_N = torch.arange(len(first_N), device=rows_N5.device) - first_N
    row_N = position_N // (3 * columns_N)
    byte_N = (top_N + row_N) * (3 * width) + 3 * left_N + (position_N - row_N * (3 * columns_N))
    channel_N = byte_N % 3
    mean_N, std_N = (
        torch.where(channel_N == 0, of[0], torch.where(channel_N == 1, of[1], of[2])).float() for of in (MEAN, STD)
    )
    noise_N = (mean_N + std_N * normal_noise(keys_N, NOISE_DRAWS + byte_N)).round_().clamp_(0, 255)
    return member_N * (3 * height * width) + byte_N, noise_N.to(torch.uint8)
