"""Normalise images for custom training loops.

This package's own training loop does not use this module, because it normalises images for each model separately.
"""

from collections.abc import Callable

import numpy as np
import torch

from vitkd_ds.data.colours import Statistics


def build_normalizer(statistics: Statistics, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that maps images_BCHW (0 to 255) to (images / 255 - mean) / std in fp32.

    The result has the device and the memory format of its input.

    Raises:
        ValueError: `statistics` is not a pair (mean, std) of 3 numbers each, or a std is not positive.
    """
    try:
        mean_and_std = np.asarray(statistics, np.float64)
    except (TypeError, ValueError):
        mean_and_std = np.zeros(0)
    is_fit = mean_and_std.shape == (2, 3) and np.isfinite(mean_and_std).all() and (mean_and_std[1] > 0).all()
    if not is_fit:
        raise ValueError(
            f"normalize must be None or a pair (mean, std) of 3 numbers each, with std above 0, got {statistics!r}. "
            f'Pass (config["mean"], config["std"]) from timm\'s resolve_model_data_config.'
        )
    mean_3, std_3 = mean_and_std
    # Fold /255, mean and std into one scale and shift, applied in place to the fp32 copy.
    scale_C11, shift_C11 = (
        torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
        for values in (1 / (255 * std_3), -mean_3 / std_3)
    )
    return lambda images_BCHW: images_BCHW.float().mul_(scale_C11).add_(shift_C11)
