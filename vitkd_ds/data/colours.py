"""Mean and standard deviation of the colours that a model was trained with. Without torch, which few readers need."""

from collections.abc import Sequence

Statistics = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each colour, for images in 0..1, as timm's `resolve_model_data_config` gives them."""
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
