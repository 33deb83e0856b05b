"""The run folder: the names in it, what config.json says, and whether a run is finished or may go on there."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vitkd_ds
from vitkd_ds.checkpoint.files import write_json
from vitkd_ds.config.run import Run, as_dict

CHECKPOINTS = "checkpoints"
TAG = re.compile(r"step\d{8}")

FREE_KEYS = frozenset(
    {
        "workdir", "resume", "eval_every_epochs", "log_every_steps", "checkpoint.every_steps", "checkpoint.keep_last",
        "checkpoint.max_failures", "data.train", "data.val", "data.num_workers", "data.backend", "data.on_bad",
        "teacher.placement", "compile", "ds_config", "timeout_minutes", "micro_batch_size_per_gpu",
        "student.checkpoint_activations",
    }
)  # fmt: skip
"""Settings that may differ between a run and its continuation: what is learned changes by rounding at most. The size of
a micro-batch and the number of ranks also change the draws of mixing and masks. The data may have moved; whether it is
the same data is compared by `TrainState`."""


def tags(folder: Path) -> list[str]:
    """Published checkpoints in a checkpoints folder, newest first."""
    return sorted((p.name for p in folder.glob("step*") if TAG.fullmatch(p.name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """The checkpoint that `latest` or `best` names, "" if there is none."""
    path = folder / name
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return text if TAG.fullmatch(text) else ""


def newest(folder: Path) -> str:
    """The checkpoint to go on from, "" if there is none: `latest`, or the newest if that is missing or damaged."""
    return pointer(folder, "latest") or next(iter(tags(folder)), "")


def is_finished(run: Run) -> bool:
    """Whether the run folder holds a finished run, which is left alone."""
    return run.resume != "none" and (Path(run.workdir) / "done").exists()


def check_settings(run: Run, config: Path | None) -> None:
    """Check that a run may use its folder, and goes on with the settings that it began with. Reads only.

    They stand in `config`, beside the checkpoint that the run starts from; None is a new run.

    Raises:
        ValueError: `--resume none` on a used folder, or settings outside FREE_KEYS differ: each with both values.
    """
    if config is None and newest(Path(run.workdir) / CHECKPOINTS):
        raise ValueError(f"--resume none needs an unused folder, found a run in {run.workdir}: give another --workdir")
    if config is None or not config.exists():
        return
    try:
        before = flattened(json.loads(config.read_text())["run"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{config} must say what run the checkpoints beside it are of, found {error!r}: put it back, or give "
            "another --workdir"
        ) from None
    now = flattened(json.loads(json.dumps(as_dict(run))))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in FREE_KEYS]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        raise ValueError(f"a continued run must have the settings of {config}, found {listed}: give another --workdir")


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; arguments of a model stay one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_part = isinstance(value, dict) and not key.endswith("_args")
        flat |= flattened(value, f"{prefix}{key}.") if is_part else {prefix + key: value}
    return flat


def describe_run(run: Run, schedule: Any, *, device: str, resumed_step: int) -> None:
    """Write config.json. A continued run has the same settings, but may have moved and been updated."""
    from vitkd_ds.engine import ranks  # slow: torch, without which `vitkd-ds compare` reads a folder

    workdir = Path(run.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    versions = {"vitkd_ds": vitkd_ds.__version__}
    for name in ("torch", "deepspeed", "timm", "ffcv", "numpy"):
        with suppress(PackageNotFoundError):  # the torchvision backend does without FFCV
            versions[name] = version(name)
    # "plan" is the schedule's name in the run folders of all versions.
    content = {"run": as_dict(run), "plan": asdict(schedule), "resumed_step": resumed_step}
    content |= {"world_size": ranks.world_size(), "device": device, "command": sys.argv, "git_commit": git_commit()}
    write_json(workdir / "config.json", content | {"versions": versions})


def git_commit() -> str:
    """Commit of the checkout that this package runs from, marked if files differ from it; "" outside a checkout."""
    root = Path(vitkd_ds.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
