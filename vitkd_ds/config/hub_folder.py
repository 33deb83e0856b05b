"""Folders in the Hugging Face hub's format: those of `vitkd-ds export --format hf`, and the names of foreign ones."""

from pathlib import Path
from typing import Any

from vitkd_ds.config.reading import Unreadable, load_json

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
OF_DESCRIPTION = {"val_crop_fraction": "crop_pct", "interpolation": "interpolation", "classes": "label_names"}
"""Key of student.json -> key of `pretrained_cfg` in config.json."""


def description_of(folder: Path) -> dict[str, Any]:
    """Return what student.json said of an exported student; {} if the folder is not one of our exports.

    Our exports are told from other timm folders by the number of classes among the model's arguments and by the names
    of the classes. Folders of the hub's cache stay foreign: their weights are used as timm describes them.
    """
    config = _read_config(folder)
    args, stated = config.get("model_args"), config.get("pretrained_cfg")
    if not (isinstance(args, dict) and isinstance(stated, dict) and "architecture" in config and "num_classes" in args):
        return {}
    if not {"mean", "std", "input_size", *OF_DESCRIPTION.values()} <= stated.keys():
        return {}
    return {
        "model": config["architecture"],
        "args": args,
        "normalization": {key: stated[key] for key in ("mean", "std")},
        "image_size": stated["input_size"][-1],
        **{key: stated[name] for key, name in OF_DESCRIPTION.items()},
    }


def advice_for(folder: Path) -> str:
    """Return what a foreign folder holds and how to use it, as the end of an error message; "" if it is unknown."""
    config = _read_config(folder)
    if "architecture" in config:
        model = config["architecture"]
        return (
            f". It is a model folder of timm: for a teacher, pass --teacher.model {model} and "
            f"--teacher.checkpoint {folder / WEIGHTS}."
        )
    if "model_type" in config or "transformers_version" in config:
        name = next(iter(config.get("architectures") or ()), config.get("model_type", "unknown"))
        return (
            f". It is a model folder of transformers ({name}), whose weights have other names than timm's. Choose the "
            "same model in timm: --teacher.model NAME --teacher.checkpoint hub."
        )
    return ""


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json beside weights; {} if there is none or it is damaged."""
    try:
        found = load_json(folder / CONFIG)
    except Unreadable:
        raise
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
