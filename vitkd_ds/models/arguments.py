"""Model arguments and preprocessing that a run or an exported student may set. None of them names a file."""

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitkd_ds.config.overrides import nearest

_OWNED_ARGS = {
    "num_classes": "is data.num_classes",
    "img_size": "is data.image_size",
    "drop_path_rate": "is student.drop_path_rate",
    "in_chans": "is 3, as images are RGB",
    "patch_drop_rate": "must stay 0, as student and teacher tokens would not match",
    "device": "is chosen by the launcher",
    "dtype": "is chosen in ds_configs",
}
"""Arguments of a model that model_args may not set, and why."""
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
"""Keys of timm's pretrained_cfg that a description may set. Others name files that timm would load."""


def check_model_args(model_args: Mapping[str, Any], cls: type[nn.Module], *, role: str) -> None:
    """Refuse arguments that a model of this class does not take, and those that are set elsewhere."""
    known = _arguments_of(cls)
    for name, value in model_args.items():
        if name in _OWNED_ARGS:
            raise ValueError(f"{role}.model_args must not set {name}, found {value!r}: it {_OWNED_ARGS[name]}")
        if name not in known:
            raise ValueError(
                f"{role}.model_args must be arguments of timm's {cls.__name__}, found {name}: {nearest(name, known)}"
            )


def takes_image_size(cls: type[nn.Module]) -> bool:
    """Whether a timm class is built for one image size; a convolutional network takes any."""
    return "img_size" in _arguments_of(cls)


def _arguments_of(cls: type[nn.Module]) -> list[str]:
    """Return the names of a timm class's own arguments, with the fields of its configuration if it has one.

    Other arguments, which timm.create_model takes itself, may name files that it would unpickle."""
    named = VisionTransformer if issubclass(cls, VisionTransformer) else cls  # subclasses hand theirs on
    signature = inspect.signature(named.__init__, eval_str=True).parameters
    config = signature["cfg"].annotation if "cfg" in signature else None
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return [name for name in (*signature, *(field.name for field in fields)) if name not in _NOT_ARGUMENTS]


def preprocessing_of(description: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return what a student's description adds to timm's pretrained_cfg. Raises ValueError if it may name a file."""
    described = description["args"].get("pretrained_cfg_overlay", {}) | description["normalization"]
    if unknown := sorted(described.keys() - {*_PREPROCESSING}):
        raise ValueError(
            f"{weights.with_suffix('.json')} may describe only preprocessing and labels in pretrained_cfg_overlay and "
            f"normalization, found {', '.join(unknown)}. Export the student again."
        )
    return described
