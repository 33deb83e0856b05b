"""Whether a run is finished, or may go on in its folder, by the settings and images in config.json."""

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
"""Settings that may differ between a run and its continuation: what is learned changes by rounding at most. The size of
a micro-batch and the number of ranks also change the draws of mixing and masks, what `dist` correlates within a
micro-batch, and how often `balance` learns. The data may have moved; whether it is the same data is compared by
`TrainState`, but for what k-NN is asked, which nothing is learned from."""
LENGTH = ("epochs", "max_steps")
"""Settings that a run may have more of than the one that it extends."""


def is_finished(run: Run) -> bool:
    """Whether the run folder holds a finished run that is left alone.

    A finished run with fewer epochs or max_steps is not, if the run extends it.

    Raises:
        ValueError: it was trained with other settings or on other images, its config.json or summary.json is gone, or
            its last checkpoint is gone and so cannot be extended.
    """
    workdir = Path(run.workdir)
    if run.resume == "none" or not (workdir / DONE).exists():
        return False
    config = workdir / CONFIG
    if not config.exists():
        raise ValueError(
            f"{workdir} is finished by its file {DONE}, and must say in config.json what was trained, found none: put "
            "it back, or give another --workdir"
        )
    before = check_settings(run, config)
    _check_images(run, before, config)
    if all(getattr(run, key) == getattr(before, key) for key in LENGTH):
        read_json(workdir / SUMMARY, {})
        return True
    if not newest(workdir / CHECKPOINTS):
        raise ValueError(f"--extend needs the last checkpoint of {workdir}, found none: give another --workdir")
    return False


def check_begun(run: Run) -> None:
    """Check the settings of a run that its folder holds already, so far as this needs no images. Raises ValueError as
    `check_settings` does."""
    workdir = Path(run.workdir)
    check_settings(run, workdir / CONFIG if run.resume != "none" and is_begun(workdir) else None)


def check_settings(run: Run, config: Path | None) -> Run | None:
    """Check that a run may use its folder, and goes on with the settings that it began with; return those. Reads only.

    They stand in `config`, beside the checkpoint that the run starts from; None is a new run. A run that extends
    another may have more epochs or max_steps.

    Raises:
        ValueError: `--resume none` on a used folder, a damaged config.json, or settings outside FREE_KEYS differ: each
            with both values.
    """
    if config is None and newest(Path(run.workdir) / CHECKPOINTS):
        raise ValueError(f"--resume none needs an unused folder, found a run in {run.workdir}: give another --workdir")
    if config is None or not config.exists():
        return None
    try:
        stored = from_dict(Run, read_json(config, {"run": dict})["run"])
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{config} must say what run the checkpoints beside it are of, found {error!r}: put it back, or give "
            "another --workdir"
        ) from None
    before, now = learned_settings(stored), learned_settings(run)
    free = LENGTH if run.extend else ()
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in free]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        is_longer = set(changed) <= set(LENGTH) and _length(run) > _length(stored)
        longer = ", or add --extend to train this one longer" if is_longer else ""
        raise ValueError(
            f"{config.parent} holds {_held(stored, config)}, whose settings differ from those given: {listed}. Pass "
            f"another --workdir for a new run{longer}."
        )
    return stored


def _length(run: Run) -> tuple[float, float]:
    """Order runs by their length; max_steps=0 is no limit."""
    return (run.max_steps or math.inf, run.epochs)


def _held(stored: Run, config: Path) -> str:
    """Say in words what a run folder, or the folder of a checkpoint, holds."""
    is_finished = (config.parent / DONE).exists()
    tag = newest(config.parent / CHECKPOINTS)
    state = "a finished run" if is_finished else f"a run at step {int(tag[4:])}" if tag else "a run"
    return f"{state} of recipe {stored.recipe}"


def _check_images(run: Run, before: Run, config: Path) -> None:
    """Check that a finished run's data are the images that it was trained on, wherever they lie.

    Data that are gone under the same name are not missed, as a finished run needs none.
    """
    stored = read_json(config, {"images": dict | None}).get("images") or {}
    for split in SPLITS:
        path = getattr(run.data, split)
        old_path = getattr(before.data, split)
        if path == old_path and (split not in stored or not (path == "demo" or Path(path).exists())):
            continue
        if stored.get(split) != fingerprint_of(run.data, split):
            now = "other images there now" if path == old_path else f"{path} now, which are not the same images"
            raise ValueError(
                f"{run.workdir} is finished, and was trained with data.{split}={old_path}, found {now}: give another "
                "--workdir"
            )


def learned_settings(run: Run) -> dict[str, Any]:
    """Dotted key -> value, as JSON gives it back, of the settings that change what is learned."""
    flat = flattened(json.loads(json.dumps(as_dict(run))))
    return {key: value for key, value in flat.items() if of_any(key) not in FREE_KEYS}


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; arguments of a model stay one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_part = isinstance(value, dict) and not key.endswith("_args")
        flat |= flattened(value, f"{prefix}{key}.") if is_part else {prefix + key: value}
    return flat


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
