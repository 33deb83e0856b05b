"""Find and read DeepSpeed's JSON files, insert the recipe's values, and validate the result.

Each setting has one owner. The recipe owns batch sizes, clipping, optimizer and schedule. The file owns all other
engine settings, and may have "auto" for numbers of the recipe. If file and recipe disagree, the error message shows
both values.
"""

import json
from pathlib import Path
from typing import Any, Callable

from vitkd_ds.config.reading import load_json

RECIPE_OWNED = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
FORBIDDEN = {
    "optimizer": "--optim.name, --optim.lr and the other options of optim",
    "scheduler": "--optim.warmup_epochs and --optim.min_lr",
    "fp16": '"bf16" (fp16 needs loss scaling, which conflicts with the non-finite check)',
    "amp": '"bf16"',
    "elasticity": "--global_batch_size (DeepSpeed 0.19.8 removed it)",
    "data_efficiency": "vitkd_ds.data",
    "curriculum_learning": "vitkd_ds.data",
}
"""Sections that a file must not have, with the settings to use instead."""

AUTO: dict[str, Callable[[bool, bool], Any]] = {
    # A module compiled as a whole yields all gradients at the end of backward, so communication cannot overlap.
    "overlap_comm": lambda is_alone, is_compiled: not is_alone and not is_compiled,
    "stage3_param_persistence_threshold": lambda is_alone, is_compiled: 2**62 if is_alone else 0,
}
"""For each key of zero_optimization that may be "auto", a function that computes its value from `is_alone` (the run has
one rank) and `is_compiled`."""

TEACHER_FILES = {
    "shard": "teacher_zero3.json",
    "replica": "teacher_zero3.json",  # only for its precision
    "offload": "teacher_zero3_offload.json",
}


AHEAD_BYTES = 400 * 2**20
"""Maximum total bytes of the blocks that a sharded teacher may gather in advance: 16 blocks of DeiT III-Large, or one
block of a 7B model."""


def most_blocks(placement: str, block_bytes: int) -> int:
    """Return how many gathered blocks of a partitioned teacher a GPU may hold at a time.

    These are the block being computed and the next one. With placement "shard", further blocks of up to AHEAD_BYTES in
    total are added.
    """
    return 2 + (AHEAD_BYTES // block_bytes if placement == "shard" else 0)


def find_ds_config(path: str) -> Path:
    """Return `path` if it is a file. Otherwise, for a path such as ds_configs/zero2.json, return the packaged copy.

    Raises:
        ValueError: neither file exists.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = [folder / Path(path).name for folder in (package / "ds_configs", package.parent / "ds_configs")]
    for candidate in [Path(path)] + (shipped if Path(path).parent.name == "ds_configs" else []):
        if candidate.is_file():
            return candidate
    names = sorted({f"ds_configs/{p.name}" for folder in shipped for p in folder.parent.glob("zero*.json")})
    raise ValueError(f"ds_config file {path} does not exist. Pass a path to a JSON file or one of {', '.join(names)}.")


def load_ds_config(path: str, owned: dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed file and fill in the recipe's numbers.

    Args:
        path: see `find_ds_config`.
        owned: the recipe's values, for the keys in RECIPE_OWNED that this engine uses.

    Raises:
        ValueError: the file is missing or not a JSON object, has a forbidden section, or contradicts the recipe.
    """
    file = find_ds_config(path)
    try:
        config = load_json(file)
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must contain a JSON object, got {type(config).__name__}")
    for key, instead in FORBIDDEN.items():
        if key in config:
            raise ValueError(f'{file} must not set "{key}", which belongs to the recipe. Use {instead}.')
    for key in RECIPE_OWNED:
        if key in config and key not in owned:
            raise ValueError(f'{file} must not set "{key}", which has no effect on this engine. Remove it.')
        if key in config and config[key] not in ("auto", owned[key]):
            raise ValueError(
                f'{file} sets "{key}" to {config[key]}, but the recipe sets it to {owned[key]}. Write "auto" in the '
                "file, or change the recipe's number on the command line."
            )
    return config | owned


def is_bf16(config: dict[str, Any]) -> bool:
    """Return whether this configuration computes in bf16 instead of fp32."""
    return config.get("bf16", {}).get("enabled", False) is True


def bucket_size(config: dict[str, Any]) -> int:
    """Return the number of elements in one of ZeRO's reduction buckets."""
    return int(config["zero_optimization"].get("reduce_bucket_size", 500_000_000))  # DeepSpeed's default


def layout(config: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Return the settings that determine how an engine partitions its state files, for a checkpoint's manifest."""
    return {
        "world_size": world_size,
        "zero_stage": config["zero_optimization"]["stage"],
        "bf16": is_bf16(config),
        "grad_accum_dtype": config.get("data_types", {}).get("grad_accum_dtype"),
    }


def check_student(config: dict[str, Any], *, source: str) -> None:
    """Check the student's configuration. DeepSpeed must leave clipping and the finite check to `vitkd_ds.engine.clip`.

    Raises:
        ValueError: DeepSpeed would compute the gradient norm or check for non-finite gradients, the ZeRO stage is not
            2, gradients are not accumulated in fp32, autocast uses fp16, or weights would not be contiguous and in
            order. The message names the file, `source`.
    """
    for section, key, value, only_bf16 in (
        ("zero_optimization", "stage", 2, False),
        # DeepSpeed would compute norms and scan for inf per parameter: 2,551 calls per update instead of about 50.
        ("zero_optimization", "compute_grad_norm", False, False),
        ("bf16", "check_grad_overflow", False, True),
        ("data_types", "grad_accum_dtype", "fp32", True),  # clipping would round a bf16 gradient a second time
    ):
        found = config.get(section, {}).get(key)
        if found != value and (is_bf16(config) or not only_bf16):
            raise ValueError(
                f'{source} must have {section} "{key}": {json.dumps(value)} for the student, got '
                f"{json.dumps(found)}. Set it as in ds_configs/zero2.json."
            )
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled") and autocast.get("dtype") != "bfloat16":
        raise ValueError(
            f'{source} must have torch_autocast "dtype": "bfloat16", got {json.dumps(autocast.get("dtype"))}. fp16 '
            "needs loss scaling, which conflicts with the non-finite check."
        )
    for key in ("parameter_alignment", "round_robin_gradients"):
        if config["zero_optimization"].get(key):
            raise ValueError(
                f'{source} must not set zero_optimization "{key}", because the student trains as a few flat '
                "parameters. Remove it."
            )


def resolve_auto(config: dict[str, Any], *, world_size: int, is_compiled: bool = False) -> None:
    """Replace each "auto" in zero_optimization, in place, with the value that its rule in AUTO gives.

    ds_configs/README.md explains the rules.

    Raises:
        ValueError: AUTO has no rule for a key.
    """
    zero = config.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == "auto"]:
        if key not in AUTO:
            raise ValueError(
                f'zero_optimization "{key}" must have a value, got "auto", which only {", ".join(AUTO)} accept. '
                "Write a value in the DeepSpeed file."
            )
        zero[key] = AUTO[key](world_size == 1, is_compiled)
