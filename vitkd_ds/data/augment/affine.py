"""Rotate, Shear and Translate: Pillow's affine transformation, bilinear or bicubic, uncovered pixels in a fixed colour.

Output pixel (x, y) takes the source at matrix * (x + 0.5, y + 0.5). A source point outside the image is uncovered; the
neighbours of one inside are repeated from the edge. Pillow's cubic has coefficient -1 (torch's grid_sample: -0.75), and
the result is truncated, not rounded.

Shear and Translate move whole rows or columns, each by its own amount, so they need neighbours along one axis only, and
their positions are exact (float64, in numpy). Rotate's positions are int32 fixed point, the same on all devices.

**Differs** from Pillow, which interpolates in float64: float32 may end one level lower or higher where the value is
within rounding of a whole number, and a rotated pixel may be covered or not where its source is on the edge.
"""

import numpy as np
import torch
from torch import Tensor

FILL = (124, 116, 104)
"""ImageNet's mean colour as timm rounds it."""
MARGIN = 2
"""Pixels that a cubic neighbourhood reaches beyond the edge."""


def line_positions(shifts_NL: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute where `move_lines` finds its pixels.

    Args:
        shifts_NL: for each line (row or column) of each image, the source position minus the output's, in pixels.
        length: pixels of a line.

    Returns:
        Whole pixels of each shift (int32), the rest (float32), and the first covered output pixel (int32): [N, L, 1].
    """
    shifts_NL1 = shifts_NL[:, :, None]
    reach = length + MARGIN  # beyond it nothing is covered, whatever is read
    whole_NL1 = np.floor(shifts_NL1)
    fraction_NL1 = (shifts_NL1 - whole_NL1).astype(np.float32)
    first_NL1 = np.clip(-np.floor(shifts_NL1 + 0.5), -length, length)
    return np.clip(whole_NL1, -reach, reach).astype(np.int32), fraction_NL1, first_NL1.astype(np.int32)


def move_lines(
    pixels_BHWC: Tensor, whole_BH1: Tensor, fraction_BH1: Tensor, first_BH1: Tensor, *, is_cubic: bool
) -> Tensor:
    """Resample each row by its own shift (`line_positions`), uint8 [B, H, W, 3] to uint8; `move_columns` is for
    columns. All neighbours of a row lie in one stretch of a padded copy, so a row is fetched as a whole."""
    num_images, height, width, channels = pixels_BHWC.shape
    size, margin = width * channels, MARGIN * channels
    rows = pixels_BHWC.view(num_images * height, size)
    # Edge pixels repeated on both sides, so that no neighbour of a covered pixel is missing.
    padded = rows.new_zeros(len(rows) + 2, size + 2 * margin)  # a line more at both ends, for far shifts
    padded[1:-1, margin:-margin] = rows
    for start in range(0, margin, channels):
        padded[1:-1, start : start + channels] = rows[:, :channels]
        padded[1:-1, margin + size + start : margin + size + start + channels] = rows[:, -channels:]
    # From the first neighbour of a row's first pixel on, the neighbours of all its pixels lie side by side.
    line = torch.arange(1, len(rows) + 1, device=rows.device)
    starts = line * padded.shape[1] + channels * (whole_BH1.view(-1) + MARGIN - 1)
    sources = _stretches(padded.view(-1), starts, size + 3 * channels).float()
    reach = range(4) if is_cubic else range(1, 3)
    taps = [sources[:, tap * channels : tap * channels + size] for tap in reach]
    result = _interpolate(taps, fraction_BH1.view(-1, 1), is_cubic=is_cubic)
    # Covered pixels of a row lie in one stretch too: a window moved over outside, inside, outside.
    place = torch.arange(3 * size, device=rows.device)
    is_inside = (place >= size) & (place < 2 * size)
    is_covered = _stretches(is_inside, size - channels * first_BH1.view(-1), size)
    return torch.where(is_covered, result, _fill(place[:size] % channels)).view(pixels_BHWC.shape)


def move_columns(
    pixels_BHWC: Tensor, whole_BW1: Tensor, fraction_BW1: Tensor, first_BW1: Tensor, *, is_cubic: bool
) -> Tensor:
    """Resample each column by its own shift, as `move_lines` does rows."""
    transposed = pixels_BHWC.transpose(1, 2).contiguous()
    return move_lines(transposed, whole_BW1, fraction_BW1, first_BW1, is_cubic=is_cubic).transpose(1, 2).contiguous()


def _stretches(values_N: Tensor, starts_R: Tensor, length: int) -> Tensor:
    """Fetch stretches of a vector as a whole: values[start : start + length] for each start, [R, length]."""
    return values_N.as_strided((len(values_N) - length + 1, length), (1, 1)).index_select(0, starts_R)


def _fill(channel: Tensor) -> Tensor:
    """Make FILL's value of each channel number on the device: a copy from the CPU would wait for it."""
    return torch.where(channel == 0, FILL[0], torch.where(channel == 1, FILL[1], FILL[2])).to(torch.uint8)


def _interpolate(taps: list[Tensor], fraction: Tensor, *, is_cubic: bool) -> Tensor:
    """Compute the truncated value between two neighbours, or the middle two of four."""
    return _between(taps, fraction, is_cubic=is_cubic).clamp_(0, 255).to(torch.uint8)


def _between(taps: list[Tensor], fraction: Tensor, *, is_cubic: bool) -> Tensor:
    """Compute the float32 value between two neighbours, or the middle two of four; exact where they are equal."""
    if not is_cubic:
        left, right = taps
        return (right - left).mul_(fraction).add_(left)
    before, left, right, after = taps
    difference, change = left - right, before - after
    # left + f * ((right - before) + f * ((2 * (before - left) + right - after) + f * (left - right - before + after)))
    inner = (difference - change).mul_(fraction).add_(change).add_(before - left).sub_(difference)
    return inner.mul_(fraction).add_(right - before).mul_(fraction).add_(left)


def rotation_positions(degrees_N: np.ndarray, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Compute where `rotate`, counter-clockwise, finds its pixels: the source of (x, y) is columns[x] + rows[y].

    Returns columns_N2W and rows_N2H (int32, x and y in units of 2**-bits pixels), and bits, as many as int32 allows.
    """
    bits = 30 - (2 * max(height, width)).bit_length()
    radians_N = np.radians(degrees_N)[:, None]
    cos_N1, sin_N1 = np.cos(radians_N), np.sin(radians_N)
    x_W, y_H = np.arange(width) + 0.5 - width / 2, np.arange(height) + 0.5 - height / 2
    columns_N2W = np.stack([cos_N1 * x_W + width / 2, sin_N1 * x_W + height / 2], 1)
    rows_N2H = np.stack([-sin_N1 * y_H, cos_N1 * y_H], 1)
    fixed = [np.rint(np.ldexp(part, bits)).astype(np.int32) for part in (columns_N2W, rows_N2H)]
    return *fixed, bits


def rotate(pixels_BHWC: Tensor, columns_B2W: Tensor, rows_B2H: Tensor, *, bits: int, is_cubic: bool) -> Tensor:
    """Resample at the positions that `rotation_positions` gives: uint8 [B, H, W, 3] to uint8."""
    num_images, height, width, _ = pixels_BHWC.shape
    x_BHW, y_BHW = (columns_B2W[:, :, None, :] + rows_B2H[:, :, :, None]).unbind(1)
    is_covered = (x_BHW >= 0) & (x_BHW < width << bits) & (y_BHW >= 0) & (y_BHW < height << bits)
    half = 1 << (bits - 1)
    left_BHW, fraction_x = _split(x_BHW - half, bits)
    upper_BHW, fraction_y = _split(y_BHW - half, bits)
    stride, rows = width + 2 * MARGIN, height + 2 * MARGIN
    image = torch.arange(num_images, dtype=torch.int32, device=x_BHW.device)[:, None, None]
    # The first of the 4 x 4 neighbours, in the padded copy; MARGIN puts it at (left - 1 + MARGIN, upper - 1 + MARGIN).
    first = (image * rows + upper_BHW.clamp_(-1, height - 1) + MARGIN - 1) * stride
    first = (first + left_BHW.clamp_(-1, width - 1) + MARGIN - 1).view(-1)
    packed = _pack(pixels_BHWC).view(-1)
    reach = range(4) if is_cubic else range(1, 3)

    def line(row: int) -> Tensor:
        taps = [packed.index_select(0, first + (row * stride + tap)) for tap in reach]
        return _between([_unpack(tap) for tap in taps], fraction_x, is_cubic=is_cubic)

    result = _interpolate([line(row) for row in reach], fraction_y, is_cubic=is_cubic).view(torch.int32)
    fill = sum(level << (8 * channel) for channel, level in enumerate(FILL))
    result = torch.where(is_covered.view(-1, 1), result, fill).view(torch.uint8)
    return result[:, :3].reshape(pixels_BHWC.shape)


def _split(position_BHW: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Split a fixed-point position into whole and fraction, the latter float32 [B * H * W, 4], one for each byte."""
    fraction = (position_BHW & ((1 << bits) - 1)).float() * 2.0**-bits
    return position_BHW >> bits, fraction.view(-1, 1).expand(-1, 4).contiguous()


def _pack(pixels_BHWC: Tensor) -> Tensor:
    """Pack pixels into int32, red lowest, so that one index fetches all channels; repeat the edges MARGIN wide."""
    _, height, width, _ = pixels_BHWC.shape
    packed_BHW = torch.nn.functional.pad(pixels_BHWC, (0, 1)).view(torch.int32).squeeze(3)
    for dim, size in ((1, height), (2, width)):
        index = torch.arange(-MARGIN, size + MARGIN, device=packed_BHW.device).clamp_(0, size - 1)
        packed_BHW = packed_BHW.index_select(dim, index)
    return packed_BHW


def _unpack(packed_N: Tensor) -> Tensor:
    """Unpack the four bytes of each int32: float32 [N, 4]."""
    return packed_N.view(-1, 1).view(torch.uint8).float()
