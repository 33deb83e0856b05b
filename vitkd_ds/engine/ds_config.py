"""Read DeepSpeed's JSON files: find them, fill in what the recipe owns, refuse what does not belong there.

Each number has one owner. The recipe owns batch sizes, clipping, optimizer and schedule; the file owns the engine's
mechanics and says "auto" where the recipe decides. If a number stands in both and differs, the error names both.
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
    "fp16": '"bf16" (fp16 needs a loss scale that the non-finite check would fight)',
    "amp": '"bf16"',
    "elasticity": "--global_batch_size (DeepSpeed 0.19.8 removed it)",
    "data_efficiency": "vitkd_ds.data",
    "curriculum_learning": "vitkd_ds.data",
}
"""Sections that must not stand in a file, and what to use instead."""

AUTO: dict[str, Callable[[bool, bool], Any]] = {
    # A module that is compiled as a whole gives all gradients at the end of its backward pass: nothing can overlap.
    "overlap_comm": lambda is_alone, is_compiled: not is_alone and not is_compiled,
    "stage3_param_persistence_threshold": lambda is_alone, is_compiled: 2**62 if is_alone else 0,
}
"""Meaning of "auto" in zero_optimization, given whether there is one rank and whether the module is compiled."""

TEACHER_FILES = {
    "shard": "teacher_zero3.json",
    "replica": "teacher_zero3.json",  # its precision alone
    "offload": "teacher_zero3_offload.json",
}


AHEAD_BYTES = 400 * 2**20
"""What a shard may have gathered besides two blocks: 16 more of a DeiT III-Large, one more of a 7 B model."""


def most_blocks(placement: str, block_bytes: int) -> int:
    """Blocks of so many bytes of a partitioned teacher that are on a GPU at a time: the one that is computed and the
    one on its way; of a shard as many more as AHEAD_BYTES have room for."""
    return 2 + (AHEAD_BYTES // block_bytes if placement == "shard" else 0)


def find_ds_config(path: str) -> Path:
    """The file itself, or for a path such as ds_configs/zero2.json the copy that ships with the package.

    Raises:
        ValueError: neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    shipped = [folder / Path(path).name for folder in (package / "ds_configs", package.parent / "ds_configs")]
    for candidate in [Path(path)] + (shipped if Path(path).parent.name == "ds_configs" else []):
        if candidate.is_file():
            return candidate
    names = sorted({f"ds_configs/{p.name}" for folder in shipped for p in folder.parent.glob("zero*.json")})
    raise ValueError(f"ds_config must be a JSON file, found no file {path}: give a path or one of {', '.join(names)}")


def load_ds_config(path: str, owned: dict[str, Any]) -> dict[str, Any]:
    """Read a DeepSpeed file and replace its "auto" by `owned`: the recipe's number for each key of RECIPE_OWNED that
    applies.

    Raises:
        ValueError: no such file, no JSON object, a forbidden section, or a number that differs from the recipe's.
    """
    file = find_ds_config(path)
    try:
        config = load_json(file)
    except ValueError as error:
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


def bucket_size(config: dict[str, Any]) -> int:
    """Elements that ZeRO reduces at once."""
    return int(config["zero_optimization"].get("reduce_bucket_size", 500_000_000))  # DeepSpeed's default


def layout(config: dict[str, Any], world_size: int) -> dict[str, Any]:
    """Collect what decides how an engine cuts its state into files, for the manifest of a checkpoint."""
    return {
        "world_size": world_size,
        "zero_stage": config["zero_optimization"]["stage"],
        "bf16": is_bf16(config),
        "grad_accum_dtype": config.get("data_types", {}).get("grad_accum_dtype"),
    }


def check_student(config: dict[str, Any], *, source: str) -> None:
    """Check that DeepSpeed leaves the norm, the finite check and the clipping to `vitkd_ds.engine.clip`.

    Raises:
        ValueError: it does not, the stage is not 2, autocast is to fp16, or weights are to lie elsewhere than one after
            the other; the message names the file, `source`.
    """
    for section, key, value, only_bf16 in (
        ("zero_optimization", "stage", 2, False),
        # DeepSpeed would norm and scan parameter by parameter: 2,551 calls an update in place of some 50.
        ("zero_optimization", "compute_grad_norm", False, False),
        ("bf16", "check_grad_overflow", False, True),
        ("data_types", "grad_accum_dtype", "fp32", True),  # clipping would round a bf16 gradient a second time
    ):
        found = config.get(section, {}).get(key)
        if found != value and (is_bf16(config) or not only_bf16):
            raise ValueError(
                f'{source} must have {section} "{key}": {json.dumps(value)} for the student, found '
                f"{json.dumps(found)}: set it as ds_configs/zero2.json does"
            )
    autocast = config.get("torch_autocast", {})
    if autocast.get("enabled") and autocast.get("dtype") != "bfloat16":
        raise ValueError(
            f'{source} must have torch_autocast "dtype": "bfloat16", found {json.dumps(autocast.get("dtype"))}: fp16 '
            "needs a loss scale that the non-finite check would fight"
        )
    for key in ("parameter_alignment", "round_robin_gradients"):
        if config["zero_optimization"].get(key):
            raise ValueError(
                f'{source} must not set zero_optimization "{key}", as the student trains as a few flat '
                "parameters: remove it"
            )


def resolve_auto(config: dict[str, Any], *, world_size: int, is_compiled: bool = False) -> None:
    """Replace each "auto" of zero_optimization by the rule of AUTO, in place; `ds_configs/README.md` gives the reasons.

    Raises:
        ValueError: the key has no rule.
    """
    zero = config.get("zero_optimization", {})
    for key in [key for key, value in zero.items() if value == "auto"]:
        if key not in AUTO:
            raise ValueError(
                f'zero_optimization must give a value for "{key}", found "auto", which only {", ".join(AUTO)} may '
                "have: write a value in the DeepSpeed file"
            )
        zero[key] = AUTO[key](world_size == 1, is_compiled)
