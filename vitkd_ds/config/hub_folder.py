"""Model folders in the Hugging Face Hub's format: our exports, and hints for folders of other libraries."""

from pathlib import Path
from typing import Any

from vitkd_ds.config.reading import Unreadable, load_json

WEIGHTS = "model.safetensors"
OF_DESCRIPTION = {"val_crop_fraction": "crop_pct", "interpolation": "interpolation", "classes": "label_names"}
"""Key of student.json -> key of `pretrained_cfg` in the Hub's config.json."""
PREPROCESSING = ("mean", "std", "input_size", "crop_pct", "interpolation", "num_classes", "label_names")
"""Keys of `pretrained_cfg` that describe the student, not timm's own weights."""


def description_of(file: Path) -> dict[str, Any]:
    """Convert the config.json of an export in the Hub's format to the content of a student.json; {} if it is not ours.

    Only our exports have the number of classes in `model_args` and the class names in `pretrained_cfg`. A folder of
    timm's own weights, as in the Hub's cache, has neither; timm's own description applies to it.
    """
    config = _read(file)
    args, stated = config.get("model_args"), config.get("pretrained_cfg")
    if not (isinstance(args, dict) and isinstance(stated, dict) and "architecture" in config and "num_classes" in args):
        return {}
    if not set(PREPROCESSING) <= stated.keys():
        return {}
    return {
        "model": config["architecture"],
        "args": args | {"pretrained_cfg_overlay": {key: stated[key] for key in PREPROCESSING}},
        "normalization": {key: stated[key] for key in ("mean", "std")},
        "image_size": stated["input_size"][-1],
        **{key: stated[name] for key, name in OF_DESCRIPTION.items()},
    }


def advice_for(file: Path) -> str:
    """Return the end of an error message: how to use another library's model folder; "" if the library is unknown."""
    config = _read(file)
    if "architecture" in config:
        model = config["architecture"]
        return (
            f". It is a model folder of timm: for a teacher, pass --teacher.model {model} and "
            f"--teacher.checkpoint {file.parent / WEIGHTS}."
        )
    if "model_type" in config or "transformers_version" in config:
        kind = config.get("model_type", "of an unknown type")
        return (
            f". It is a model folder of transformers ({kind}), whose weights have other names than timm's. Choose the "
            "same model in timm: --teacher.model NAME --teacher.checkpoint hub."
        )
    return ""


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object; return {} for a missing or damaged file."""
    try:
        found = load_json(file)
    except Unreadable:
        raise
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
