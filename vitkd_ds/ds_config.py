"""DeepSpeed's JSON files: find them, fill in what the recipe owns, refuse what does not belong there.

One owner per number: the recipe owns batch sizes, clipping, optimizer and schedule; the JSON owns the engine's
mechanics and says "auto" where the recipe decides. A number in both that differs is an error that names both.
"""

import json
from pathlib import Path
from typing import Any

RECIPE_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
FORBIDDEN = {
    "optimizer": "--optim.lr and its neighbours",
    "scheduler": "--optim.warmup_epochs and --optim.min_lr",
    "fp16": '"bf16" (fp16 needs a loss scale that the non-finite check would fight)',
    "amp": '"bf16"',
    "elasticity": "--global_batch_size (DeepSpeed 0.19.8 removed it)",
    "data_efficiency": "vitkd_ds.data",
    "curriculum_learning": "vitkd_ds.data",
}
"""Sections that must not stand in a file, and what to use instead."""

TEACHER_FILES = {
    "shard": "teacher_zero3.json",
    "replica": "teacher_zero3.json",  # its precision alone
    "offload": "teacher_zero3_offload.json",
}


def find_ds_config(path: str) -> Path:
    """The file itself, or for a path such as ds_configs/zero2.json the copy that ships with the package.

    Raises:
        ValueError: neither exists.
    """
    package = Path(__file__).resolve().parent
    shipped = [folder / Path(path).name for folder in (package / "ds_configs", package.parent / "ds_configs")]
    candidates = [Path(path)] + (shipped if Path(path).parent.name == "ds_configs" else [])
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    names = sorted({f"ds_configs/{p.name}" for folder in shipped for p in folder.parent.glob("zero*.json")})
    raise ValueError(f"ds_config must be a JSON file, found no file {path}: give a path or one of {', '.join(names)}")


def load_ds_config(path: str, owned: dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed file and replace its "auto" by the recipe's numbers.

    Args:
        path: the file.
        owned: the recipe's number for each key of RECIPE_OWNED that applies.

    Raises:
        ValueError: no such file, no JSON object, a forbidden section, or a number that differs from the recipe's.
    """
    file = find_ds_config(path)
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} must be JSON, found {error}: mend the file") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object, found {type(config).__name__}: mend the file")
    for key, instead in FORBIDDEN.items():
        if key in config:
            raise ValueError(f'{file} must not set "{key}", which the recipe owns: use {instead}')
    for key in RECIPE_OWNED:
        if key in config and key not in owned:
            raise ValueError(f'{file} must not set "{key}", which has no meaning for this engine: remove it')
        if key in config and config[key] not in ("auto", owned[key]):
            raise ValueError(
                f'{file} sets "{key}" to {config[key]}, the recipe to {owned[key]}: write "auto" in the file, or '
                "change the recipe's number on the command line"
            )
    return config | owned


def is_bf16(config: dict[str, Any]) -> bool:
    """Whether the engine of this configuration computes in bf16 (else fp32)."""
    return config.get("bf16", {}).get("enabled", False) is True


def layout(config: dict[str, Any], world_size: int) -> dict[str, Any]:
    """What decides how an engine of this configuration cuts its state into files; equal layouts read each other's."""
    accumulated = config.get("data_types", {}).get("grad_accum_dtype")
    return {
        "world_size": world_size,
        "zero_stage": stage(config),
        "bf16": is_bf16(config),
        "grad_accum_dtype": accumulated,  # decides which of two optimizers DeepSpeed takes in stage 1
    }


def stage(config: dict[str, Any]) -> int:
    """The ZeRO stage of this configuration."""
    return int(config.get("zero_optimization", {}).get("stage", 0))
