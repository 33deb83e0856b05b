"""Decide from a run folder's config.json whether the run is finished or may continue there."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import vitkd_ds
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.config.run_folder import CHECKPOINTS, CONFIG, DONE, SUMMARY, is_begun, newest, read_json
from vitkd_ds.config.teachers import of_any
from vitkd_ds.data.images import SPLITS, fingerprint_of

FREE_KEYS = frozenset(
    """
    workdir resume extend eval_every_epochs log_every_steps checkpoint.every_steps checkpoint.keep_last
    checkpoint.max_failures data.train data.val data.knn_train data.knn_val data.num_workers data.backend data.on_bad
    teacher.placement compile deterministic profile trackers ds_config timeout_minutes micro_batch_size_per_gpu
    student.checkpoint_activations
    """.split()
)
"""Settings that may change when a run continues. Most of them affect the result only through rounding.

The micro-batch size and the number of ranks also affect the random draws for mixing and masks, the images that the loss
`dist` correlates, and how often `losses.balance` updates its factors. The paths of the images may change, because the
fingerprint in `TrainState` detects other images. Images for k-NN are not compared, because nothing is learned from
them."""
LENGTH = ("epochs", "max_steps")
"""Settings that --extend may increase."""


def is_finished(run: Run) -> bool:
    """Return whether the run folder has a finished run, so that there is nothing to do.

    If `run` extends the finished run to more epochs or max_steps, return False.

    Raises:
        ValueError: the finished run had other settings or images; its config.json or summary.json is missing; or `run`
            extends it, but its last checkpoint is missing.
    """
    workdir = Path(run.workdir)
    if run.resume == "none" or not (workdir / DONE).exists():
        return False
    config = workdir / CONFIG
    if not config.exists():
        raise ValueError(
            f"{workdir} has a finished run (file {DONE}), but config.json with its settings is missing. Restore it, or "
            "pass another --workdir."
        )
    before = check_settings(run, config)
    _check_images(run, before, config)
    if all(getattr(run, key) == getattr(before, key) for key in LENGTH):
        read_json(workdir / SUMMARY, {})
        return True
    if not newest(workdir / CHECKPOINTS):
        raise ValueError(f"--extend needs the last checkpoint of {workdir}, which is missing. Pass another --workdir.")
    return False


def check_begun(run: Run) -> None:
    """If the folder already contains a run, check that the settings match those of that run. No image is read.

    Raises:
        ValueError: see `check_settings`.
    """
    workdir = Path(run.workdir)
    check_settings(run, workdir / CONFIG if run.resume != "none" and is_begun(workdir) else None)


def check_settings(run: Run, config: Path | None) -> Run | None:
    """Check that a run may use its folder, and that its settings equal the settings in `config`.

    Return the settings in `config`, or None if there is no such file. Nothing is written.

    Args:
        run: settings of this launch. With `extend`, epochs and max_steps may differ.
        config: config.json of the run that saved the checkpoint to start from; None for a new run.

    Raises:
        ValueError: `--resume none` is given for a folder that has a run; config.json is damaged; or settings outside
            FREE_KEYS have changed. The message shows the old and the new value of each changed setting.
    """
    if config is None and newest(Path(run.workdir) / CHECKPOINTS):
        raise ValueError(f"--resume none needs an unused folder, but {run.workdir} has a run. Pass another --workdir.")
    if config is None or not config.exists():
        return None
    try:
        stored = from_dict(Run, read_json(config, {"run": dict})["run"])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{config} does not have valid settings for the checkpoints in its folder: {error!r}. Restore it, or pass "
            "another --workdir."
        ) from None
    before, now = learned_settings(stored), learned_settings(run)
    free = LENGTH if run.extend else ()
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        is_longer = set(changed) <= set(LENGTH) and _length(run) > _length(stored)
        longer = ", or add --extend to train this one longer" if is_longer else ""
        raise ValueError(
            f"{config.parent} holds {_held(stored, config)}, whose settings in {config.name} differ from those given: "
            f"{listed}. Pass another --workdir for a new run{longer}."
        )
    return stored


def _length(run: Run) -> tuple[float, float]:
    """Return a key that orders runs by their length; max_steps=0 means no limit."""
    return (run.max_steps or math.inf, run.epochs)


def _held(stored: Run, config: Path) -> str:
    """Describe the run in the folder of `config` for an error message."""
    is_finished = (config.parent / DONE).exists()
    tag = newest(config.parent / CHECKPOINTS)
    state = "a finished run" if is_finished else f"a run at step {int(tag[4:])}" if tag else "a run"
    return f"{state} of recipe {stored.recipe}"


def _check_images(run: Run, before: Run, config: Path) -> None:
    """Raise ValueError if a split does not have the images that the finished run used. Their path may have changed.

    If a split's path is unchanged, its file may be missing, because a finished run no longer needs it.
    """
    stored = read_json(config, {"images": dict | None}).get("images") or {}
    for split in SPLITS:
        path = getattr(run.data, split)
        old_path = getattr(before.data, split)
        if path == old_path and (split not in stored or not (path == "demo" or Path(path).exists())):
            continue
        if stored.get(split) != fingerprint_of(run.data, split):
            now = "this path has other images now" if path == old_path else f"{path} has other images"
            raise ValueError(
                f"{run.workdir} has a finished run that was trained with data.{split}={old_path}, but {now}. Pass "
                "another --workdir."
            )


def learned_settings(run: Run) -> dict[str, Any]:
    """Return the settings that affect the learned weights, by dotted key. Values are as after a JSON round trip."""
    flat = flattened(json.loads(json.dumps(as_dict(run))))
    return {key: value for key, value in flat.items() if of_any(key) not in FREE_KEYS}


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one dict with dotted keys. A dict of a model's arguments (`*_args`) stays one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_part = isinstance(value, dict) and not key.endswith("_args")
        flat |= flattened(value, f"{prefix}{key}.") if is_part else {prefix + key: value}
    return flat


def git_commit() -> str:
    """Return the commit of this package's checkout, followed by "-dirty" if files have been changed.

    Return "" outside a checkout, or if git fails.
    """
    root = Path(vitkd_ds.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
