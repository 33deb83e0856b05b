"""The run folder: the names in it, what config.json says, and whether a run is finished or may go on there."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import vitkd_ds
from vitkd_ds.checkpoint.files import write_json
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.config.run_folder import CHECKPOINTS, CONFIG, DONE, SUMMARY, is_begun, newest, read_json
from vitkd_ds.data.images import SPLITS, fingerprint_of

FREE_KEYS = frozenset(
    {
        "workdir", "resume", "extend", "eval_every_epochs", "log_every_steps", "checkpoint.every_steps",
        "checkpoint.keep_last", "checkpoint.max_failures", "data.train", "data.val", "data.knn_train",
        "data.knn_val", "data.num_workers", "data.backend", "data.on_bad", "teacher.placement", "compile",
        "deterministic", "profile", "trackers", "ds_config", "timeout_minutes", "micro_batch_size_per_gpu",
        "student.checkpoint_activations",
    }
)  # fmt: skip
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
        longer = " (or train it longer with --extend)" if set(changed) <= set(LENGTH) else ""
        raise ValueError(
            f"a continued run must have the settings of {config}, found {listed}: give another --workdir{longer}"
        )
    return stored


def _check_images(run: Run, before: Run, config: Path) -> None:
    """Check that a finished run's data are the images that it was trained on, wherever they lie.

    Data that are gone under the same name are not missed, as a finished run needs none. Runs of versions before 0.4
    stored no fingerprint: theirs must have the same name.
    """
    stored = read_json(config, {"images": dict | None}).get("images") or {}
    for split in SPLITS:
        path, old_path = getattr(run.data, split), getattr(before.data, split)
        if path == old_path and (split not in stored or not (path == "demo" or Path(path).exists())):
            continue
        trained = f"{run.workdir} is finished, and was trained with data.{split}={old_path}"
        if split not in stored:
            raise ValueError(
                f"{trained} by a version that stored no fingerprint of the images, so {path} cannot be compared with "
                f"them: give --data.{split}={old_path}, or another --workdir"
            )
        if stored[split] != fingerprint_of(run.data, split):
            now = "other images there now" if path == old_path else f"{path} now, which are not the same images"
            raise ValueError(f"{trained}, found {now}: give another --workdir")


def learned_settings(run: Run) -> dict[str, Any]:
    """Dotted key -> value, as JSON gives it back, of the settings that change what is learned."""
    flat = flattened(json.loads(json.dumps(as_dict(run))))
    return {key: value for key, value in flat.items() if key not in FREE_KEYS}


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; arguments of a model stay one value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_part = isinstance(value, dict) and not key.endswith("_args")
        flat |= flattened(value, f"{prefix}{key}.") if is_part else {prefix + key: value}
    return flat


def describe_run(
    run: Run, schedule: Any, *, device: str, resumed_step: int, models: dict[str, Any], images: dict[str, int],
    workdir: str,
) -> None:  # fmt: skip
    """Write config.json, which makes a finished run that is extended an unfinished one.

    A continued run has the same settings, but may have moved and been updated. `models` says what student and teacher
    cost; `images` has the fingerprint of each split; `workdir` is the run folder as the command named it.
    """
    # Slow: torch, without which `vitkd-ds compare` reads a folder.
    from vitkd_ds.engine import ranks
    from vitkd_ds.engine.processes import device_name

    folder = Path(run.workdir)
    versions = {"vitkd_ds": vitkd_ds.__version__}
    for name in ("torch", "deepspeed", "timm", "ffcv", "numpy"):
        with suppress(PackageNotFoundError):  # the torchvision backend does without FFCV
            versions[name] = version(name)
    (folder / DONE).unlink(missing_ok=True)
    extended = _extended_at(run, schedule.total_steps, resumed_step=resumed_step)
    # "plan" is the schedule's name in the run folders of all versions.
    content = {"run": as_dict(run) | {"workdir": workdir}, "plan": asdict(schedule), "resumed_step": resumed_step}
    now = {"step": resumed_step, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "ranks": ranks.world_size()}
    starts = [*_starts_before(folder, resumed_step), now | {"device": device_name()}]
    content |= {"extended_at_steps": extended, "starts": starts}
    content |= {"world_size": ranks.world_size(), "device": device, "command": sys.argv, "git_commit": git_commit()}
    write_json(folder / CONFIG, content | {"versions": versions, "models": models, "images": images})


def _extended_at(run: Run, total_steps: int, *, resumed_step: int) -> list[int]:
    """The steps at which the run was made longer, this start included. A new run, at step 0, has none."""
    if not resumed_step:
        return []
    config = Path(run.workdir) / CONFIG
    if not config.exists():  # it begins at another run's checkpoint
        return [resumed_step] if run.extend else []
    before = read_json(config, {"plan.total_steps": int, "extended_at_steps": list | None})
    is_longer = before["plan"]["total_steps"] < total_steps
    return (before.get("extended_at_steps") or []) + ([resumed_step] if is_longer else [])


def _starts_before(workdir: Path, resumed_step: int) -> list[dict[str, Any]]:
    """The starts of the run so far; none where it begins at step 0, or was begun by a version that noted none."""
    config = workdir / CONFIG
    if not resumed_step or not config.exists():
        return []
    return read_json(config, {"starts": list | None}).get("starts") or []


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
