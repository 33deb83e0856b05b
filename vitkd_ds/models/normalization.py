"""Normalise images by a model's mean and standard deviation.

The constants are not part of the model, because `module.bfloat16()` would round them.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each colour channel, for images in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, images_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute (images / 255 - mean) / std in fp32, and round the result to `dtype` once.

        Args:
            images_BCHW: RGB images, uint8 or floating point, 0..255.
            dtype: dtype of the result.

        Returns:
            Images of the same shape, device and memory format (channels-last stays channels-last).
        """
        # During torch.compile's tracing, a cache would keep the tracer's tensors. The graph holds the constants anyway.
        affine = _affine if torch.compiler.is_compiling() else _cached_affine
        scale_C11, shift_C11 = affine(self, images_BCHW.device)
        return torch.addcmul(shift_C11, images_BCHW.float(), scale_C11).to(dtype)


@dataclass(frozen=True)
class ResizedNormalization(Normalization):
    """Normalisation that first resizes images to the model's size (bicubic, antialiased)."""

    image_size: int
    """Height and width of the model's input in pixels."""

    def apply(self, images_BCHW: Tensor, dtype: torch.dtype) -> Tensor:
        """See `Normalization.apply`; the result is [B, C, image_size, image_size]."""
        size = (self.image_size, self.image_size)
        if images_BCHW.shape[-2:] != size:
            options = {"mode": "bicubic", "antialias": True, "align_corners": False}
            images_BCHW = F.interpolate(images_BCHW.float(), size, **options).clamp(0, 255)
        return super().apply(images_BCHW, dtype)


def _affine(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute scale and shift: (x / 255 - m) / s = x * (1 / (255 s)) + (-m / s)."""
    scale = [1 / (255 * std) for std in normalization.std]
    shift = [-mean / std for mean, std in zip(normalization.mean, normalization.std, strict=True)]
    scale_C, shift_C = (torch.tensor(numbers, dtype=torch.float32, device=device) for numbers in (scale, shift))
    return scale_C.view(-1, 1, 1), shift_C.view(-1, 1, 1)


@functools.lru_cache(maxsize=16)
def _cached_affine(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    # Tensors created in inference mode cannot be used in later training steps.
    with torch.inference_mode(mode=False):
        return _affine(normalization, device)
