"""Check that DeepSpeed still has what this package uses of it without being promised it."""

from collections.abc import Sequence
from typing import Any

import deepspeed

STUDENT = ("checkpoint_engine", "_copy_recovery_script")
STUDENT_OPTIMIZER = ("averaged_gradients", "single_partition_of_fp32_groups", "update_lp_params")
SHARD_OPTIMIZER = ("backward_hooks",)
SHARD_PARAMETER = ("convert_to_zero_parameters", "ds_tensor")
OPS = ("__compatible_ops__",)


def check_internals(owner: Any, names: Sequence[str]) -> None:
    """Check that a part of DeepSpeed, or what it made, has attributes of these names.

    Raises:
        RuntimeError: one is missing; the message names it and the version.
    """
    if missing := [name for name in names if not hasattr(owner, name)]:
        kind = getattr(owner, "__name__", type(owner).__name__)
        raise RuntimeError(
            f"{kind} of deepspeed {deepspeed.__version__} must have {', '.join(missing)}, found none: "
            "install a version of deepspeed that setup.py names, or have vitkd_ds adapted to this one"
        )
