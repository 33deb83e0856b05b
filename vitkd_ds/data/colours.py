"""Colour statistics of a model's training images: mean and standard deviation. No torch."""

from collections.abc import Sequence

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation per colour, for images in 0..1, as in timm's `resolve_model_data_config`."""
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
