"""Mean and standard deviation of the colours of a model's training images."""

from collections.abc import Sequence

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each colour, for pixel values from 0 to 1, as in timm's model configurations."""
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
