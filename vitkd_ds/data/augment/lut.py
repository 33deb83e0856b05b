"""Operations that map each of the 256 levels of a channel to another: one table per image and channel, one look-up.

Tables that no pixel decides are made in numpy (`fixed_tables`); the others in torch, from the images' statistics.
All equal Pillow's bit for bit.
"""

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.data.augment.blends import grey_levels, planar

FIXED_OPS = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness")


def fixed_tables(op: str, arguments_N: np.ndarray) -> np.ndarray:
    """Make the tables [N, 256] of Invert, Posterize (bits), Solarize (threshold), SolarizeAdd (summand) or Brightness.

    **Differs**: no bits left to Posterize is a black image, as in Pillow up to 12; Pillow 13 stops with an error there,
    and so does timm's rand-m9-mstd0.5-inc1 on it, at magnitude 10 (2 % of its Posterize).
    """
    levels, arguments_N1 = np.arange(256), arguments_N[:, None]
    if op == "Invert":
        tables = 255 - levels + 0 * arguments_N1
    elif op == "Posterize":
        tables = levels & ~((1 << (8 - np.clip(arguments_N1, 0, 8).astype(np.int64))) - 1)
    elif op == "Solarize":
        tables = np.where(levels < arguments_N1, levels, 255 - levels)
    elif op == "SolarizeAdd":
        tables = np.where(levels < 128, np.minimum(levels + arguments_N1, 255), levels)
    else:
        tables = np.minimum(arguments_N1.astype(np.float32) * levels.astype(np.float32), 255)
    return tables.astype(np.uint8)


def contrast_tables(pixels_BHWC: Tensor, factors_B: Tensor) -> Tensor:
    """Make tables that move levels away from the image's rounded mean grey by a float32 factor: uint8 [B, 3, 256]."""
    grey_BHW = grey_levels(planar(pixels_BHWC))
    count = grey_BHW[0].numel()
    mean_B = (2 * grey_BHW.flatten(1).sum(1) + count) // (2 * count)
    mean_B1 = mean_B.float()[:, None]
    levels = torch.arange(256, dtype=torch.float32, device=pixels_BHWC.device)
    tables_BL = (mean_B1 + factors_B[:, None] * (levels - mean_B1)).clamp_(0, 255).to(torch.uint8)
    return tables_BL[:, None].expand(-1, 3, -1)


def autocontrast_tables(pixels_BHWC: Tensor) -> Tensor:
    """Make tables that stretch each channel to 0 to 255: uint8 [B, 3, 256]; a channel of one level stays."""
    planes_BCN = planar(pixels_BHWC).flatten(2)
    low_BC1 = planes_BCN.amin(2, keepdim=True).double()
    high_BC1 = planes_BCN.amax(2, keepdim=True).double()
    levels = torch.arange(256, dtype=torch.float64, device=pixels_BHWC.device)
    # float64 because Python computes Pillow's table: float32 falls below some whole numbers; only the table is wide.
    # A number divided by a tensor is torch's reciprocal times the number, rounded twice; hence the tensor of 255.
    scale_BC1 = torch.full_like(low_BC1, 255.0) / (high_BC1 - low_BC1).clamp(min=1)
    stretched = (levels * scale_BC1 + -low_BC1 * scale_BC1).clamp_(0, 255)
    return torch.where(high_BC1 > low_BC1, stretched, levels).to(torch.uint8)


def equalize_tables(pixels_BHWC: Tensor) -> Tensor:
    """Make tables that flatten each channel's histogram: uint8 [B, 3, 256].

    With h the histogram: level i becomes (step // 2 + h[0] + ... + h[i - 1]) // step, at most 255, where 255 steps hold
    all pixels but those of the highest level. A channel too small for a step, or of one level, stays.
    """
    planes_BCN = planar(pixels_BHWC).flatten(2)
    num_tables = planes_BCN.shape[0] * planes_BCN.shape[1]
    first_bin = torch.arange(0, 256 * num_tables, 256, device=pixels_BHWC.device).view(*planes_BCN.shape[:2], 1)
    bins = (planes_BCN.long() + first_bin).view(-1)
    ones = torch.ones((), dtype=torch.int32, device=bins.device).expand(bins.shape)
    histogram = torch.zeros(256 * num_tables, dtype=torch.int32, device=bins.device).scatter_add_(0, bins, ones)
    histogram_BCL = histogram.view(*planes_BCN.shape[:2], 256)
    levels = torch.arange(256, dtype=torch.int32, device=bins.device)
    highest_BC1 = torch.where(histogram_BCL > 0, levels, 0).amax(2, keepdim=True).long()
    step_BC1 = (planes_BCN.shape[2] - histogram_BCL.gather(2, highest_BC1)) // 255
    below_BCL = histogram_BCL.cumsum(2, dtype=torch.int32) - histogram_BCL
    flat_BCL = (step_BC1 // 2 + below_BCL) // step_BC1.clamp(min=1)
    return torch.where(step_BC1 > 0, flat_BCL.clamp_(max=255), levels).to(torch.uint8)


MEASURED_OPS = {"Contrast": contrast_tables, "AutoContrast": autocontrast_tables, "Equalize": equalize_tables}
"""Operations whose tables depend on the image's pixels."""
TABLE_OPS = (*FIXED_OPS, *MEASURED_OPS)


def apply_tables(pixels_BHWC: Tensor, tables_BCL: Tensor) -> Tensor:
    """Look every level up: uint8 [B, H, W, 3] contiguous and tables uint8 [B, 3, 256], to uint8 [B, H, W, 3]."""
    num_images, height, width, channels = pixels_BHWC.shape
    place = torch.arange(width * channels, dtype=torch.int32, device=pixels_BHWC.device) % channels
    image = torch.arange(num_images, dtype=torch.int32, device=pixels_BHWC.device)[:, None, None]
    index = pixels_BHWC.view(num_images, height, -1) + (256 * place + 256 * channels * image)
    return tables_BCL.reshape(-1).index_select(0, index.view(-1)).view(pixels_BHWC.shape)
