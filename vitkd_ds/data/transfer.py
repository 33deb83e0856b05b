"""Small arrays to the images' device, without waiting for what it still has to do."""

import numpy as np
import torch
from torch import Tensor


def send(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy a small array to the device: from pinned memory if it is a GPU, as a copy from other memory would wait
    until all that was queued before it is done. Tensors stay."""
    if isinstance(array, Tensor):
        return array
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
