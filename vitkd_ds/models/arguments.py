"""Check the model arguments and preprocessing of a run or an exported student. No value may name a file."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitkd_ds.config.overrides import nearest

_OWNED_ARGS = {
    "num_classes": "is set by data.num_classes",
    "img_size": "is set by data.image_size",
    "drop_path_rate": "is set by student.drop_path_rate",
    "in_chans": "is 3 because images are RGB",
    "patch_drop_rate": "must stay 0 because student and teacher tokens would not match",
    "device": "is chosen by the launcher",
    "dtype": "is set in ds_configs",
}
"""Arguments that model_args may not set, with the reason."""
_NOT_ARGUMENTS = ("self", "cfg", "args", "kwargs")
_PREPROCESSING = (
    "mean",
    "std",
    "input_size",
    "test_input_size",
    "crop_pct",
    "test_crop_pct",
    "crop_mode",
    "interpolation",
    "num_classes",
    "label_names",
    "label_descriptions",
)
"""Keys of timm's pretrained_cfg that a student.json may set. Other keys may name files that timm would load."""


def check_model_args(model_args: Mapping[str, Any], cls: type[nn.Module], *, role: str) -> None:
    """Raise ValueError for an argument that the class does not accept, or that another setting determines."""
    known = _arguments_of(cls)
    for name, value in model_args.items():
        if name in _OWNED_ARGS:
            raise ValueError(
                f"{role}.model_args must not set {name} (got {value!r}): it {_OWNED_ARGS[name]}. Remove it."
            )
        if name not in known:
            raise ValueError(
                f"{role}.model_args: {name} is not an argument of timm's {cls.__name__}; {nearest(name, known)}"
            )


def takes_image_size(cls: type[nn.Module]) -> bool:
    """Return whether a timm class is built for one image size; convolutional networks accept any size."""
    return "img_size" in _arguments_of(cls)


def _arguments_of(cls: type[nn.Module]) -> list[str]:
    """Return the argument names of a timm class, including the fields of its configuration if it has one.

    All other arguments would be used by timm.create_model itself, and could name files that it would unpickle.
    """
    named = VisionTransformer if issubclass(cls, VisionTransformer) else cls  # subclasses pass **kwargs on
    signature = inspect.signature(named.__init__, eval_str=True).parameters
    config = signature["cfg"].annotation if "cfg" in signature else None
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return [name for name in (*signature, *(field.name for field in fields)) if name not in _NOT_ARGUMENTS]


def preprocessing_of(description: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return the values for timm's pretrained_cfg from a student.json. Raise ValueError if a key may name a file."""
    described = description["args"].get("pretrained_cfg_overlay", {}) | description["normalization"]
    if unknown := sorted(described.keys() - {*_PREPROCESSING}):
        raise ValueError(
            f"{weights.with_suffix('.json')}: pretrained_cfg_overlay and normalization may contain only preprocessing "
            f"and labels, got {', '.join(unknown)}. Export the student again."
        )
    return described
