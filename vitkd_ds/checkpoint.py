"""Save, resume, keep and leave: DeepSpeed checkpoints on all ranks, `latest` and `best`, and the exported student.

A checkpoint is the folder checkpoints/step00001234. DeepSpeed writes `latest` before all shards are on disk, so it is
written here instead, once every rank has finished. Beside DeepSpeed's shards lies the exported student of that step,
so an export never unpickles anything.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitkd_ds import dist
from vitkd_ds.config import Run, as_dict
from vitkd_ds.metrics import write_atomically, write_json

STUDENT, DESCRIPTION = "student.safetensors", "student.json"
TAG = re.compile(r"step\d{8}")

FREE_KEYS = frozenset(
    {
        "workdir", "resume", "eval_every_epochs", "log_every_steps", "checkpoint.every_steps", "checkpoint.keep_last",
        "data.train", "data.val", "data.num_workers", "data.backend", "data.on_bad", "teacher.placement", "compile",
    }
)  # fmt: skip
"""What may differ between a run and its continuation, as it changes what is learned by rounding at most. The data may
have moved: its size is compared besides, by `TrainState.steps_per_epoch`."""


@dataclass
class TrainState:
    """What must survive a restart besides the engine's own state. Every random draw is keyed by seed, rank and step,
    and every schedule is a function of the step, so this is all."""

    steps_per_epoch: int
    """Of the data that the checkpoint was made with."""
    step: int = 0
    """Optimizer updates done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent; -1 before the first evaluation."""
    best_step: int = 0
    result: dict[str, float] = field(default_factory=dict)
    """The last evaluation."""
    result_step: int = -1
    timed_s: float = 0.0
    """Time of the timed steps so far, for the speed in the summary."""
    timed_steps: int = 0


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from."""

    folder: Path
    """The checkpoints folder."""
    tag: str
    is_own: bool
    """In the run's own folder."""
    is_named: bool
    """By --resume PATH: this checkpoint and no other will do."""


def save(engine: Any, state: TrainState, workdir: Path, keep_last: int, description: dict[str, Any]) -> None:
    """Write a checkpoint, publish it as `latest` (and `best`), delete what is no longer kept. Collective.

    Args:
        engine: a `vitkd_ds.engine.StudentEngine`.
        state: goes into the checkpoint.
        workdir: the run folder.
        keep_last: newest checkpoints that stay; the best stays besides.
        description: for student.json.
    """
    folder, tag = workdir / "checkpoints", f"step{state.step:08d}"
    engine.save(str(folder), tag, {"train_state": asdict(state)})
    weights = engine.student_weights()

    def publish() -> None:
        write_student(folder / tag, weights, description | {"step": state.step, "world_size": dist.world_size()})
        if state.best_step == state.step:
            write_atomically(folder / "best", tag)
        write_atomically(folder / "latest", tag)
        _delete_old(folder, keep_last)

    on_main(publish)


def _delete_old(folder: Path, keep_last: int) -> None:
    # The exported student is written last, so a folder without it is one that a crash left half written.
    whole = [tag for tag in tags(folder) if (folder / tag / STUDENT).exists()]
    kept = {*whole[:keep_last], pointer(folder, "best"), pointer(folder, "latest")}
    for tag in set(tags(folder)) - kept:
        shutil.rmtree(folder / tag)


def tags(folder: Path) -> list[str]:
    """Checkpoints in a folder, newest first; those that a crash left half written are among them."""
    return sorted((p.name for p in folder.glob("step*") if TAG.fullmatch(p.name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """The checkpoint that `latest` or `best` names, "" if there is none."""
    path = folder / name
    return path.read_text().strip() if path.exists() else ""


def find(resume: str, workdir: Path) -> Start | None:
    """Where a run starts from; None for a new run. Reads only.

    A run that was started from another run's checkpoint and has its own by now goes on in its own folder, so that the
    same command can be given again.

    Raises:
        ValueError: a path without a checkpoint.
    """
    own = workdir / "checkpoints"
    latest = pointer(own, "latest")
    if resume == "none" or (resume == "auto" and not latest):
        return None
    if resume == "auto":
        return Start(own, latest, is_own=True, is_named=False)
    path = Path(resume)
    folder, tag = path / "checkpoints", pointer(path / "checkpoints", "latest")
    if TAG.fullmatch(path.name) and path.is_dir():
        folder, tag = path.parent, path.name
    if not tag:
        raise ValueError(f"--resume must be auto, none, a run folder or a checkpoint in one, found {resume}")
    if folder.resolve() == own.resolve():
        return Start(own, tag, is_own=True, is_named=True)
    if latest:
        print(f"{workdir} was started from {resume} before and goes on from its own {latest}", flush=True)
        return Start(own, latest, is_own=True, is_named=False)
    return Start(folder, tag, is_own=False, is_named=True)


def restore(engine: Any, start: Start | None, *, steps_per_epoch: int, device: torch.device) -> TrainState:
    """Load a checkpoint into the engine, or start anew. Collective.

    If some rank cannot read the newest one, all ranks together take the next older one; one that was named by
    `--resume PATH` is not replaced.

    Raises:
        ValueError: no checkpoint can be read, or it was made with another number of ranks or images.
    """
    if start is None:
        return TrainState(steps_per_epoch)
    on_main(lambda: _check_world_size(start.folder / start.tag))
    older = [] if start.is_named else [tag for tag in dist.from_main(tags(start.folder)) if tag < start.tag]
    for tag in [start.tag, *older]:
        client_state = _attempt(engine.load, str(start.folder), tag)
        is_error = isinstance(client_state, Exception)
        if dist.all_true(not is_error, device):
            return _checked(TrainState(**client_state["train_state"]), start, steps_per_epoch)
        reason = repr(client_state) if is_error else "another rank could not read it"
        print(f"rank {dist.rank()}: checkpoint {start.folder / tag} cannot be read: {reason}", flush=True)
    tried = ", ".join([start.tag, *older])
    raise ValueError(f"{start.folder} must hold a whole checkpoint, found {tried}, none of them readable")


def _checked(state: TrainState, start: Start, steps_per_epoch: int) -> TrainState:
    if state.steps_per_epoch != steps_per_epoch:
        raise ValueError(
            f"{start.folder / start.tag} was made with {state.steps_per_epoch} steps per epoch, found "
            f"{steps_per_epoch}: give the same data.train and global_batch_size"
        )
    # The best of another run is not in this one's folder.
    return state if start.is_own else replace(state, best_top1=-1.0, best_step=0)


def _check_world_size(checkpoint: Path) -> None:
    path = checkpoint / DESCRIPTION
    ranks = json.loads(path.read_text())["world_size"] if path.exists() else dist.world_size()
    if ranks != dist.world_size():
        raise ValueError(
            f"{checkpoint} must be continued by as many ranks as wrote it, {ranks}, found {dist.world_size()}: start "
            f"{ranks} ranks, or train on from its weights with --student.init={checkpoint / STUDENT}"
        )


def on_main(function: Callable[[], None]) -> None:
    """Run `function` on rank 0; its error is raised on every rank. Collective."""
    error = dist.from_main(_attempt(function) if dist.rank() == 0 else None)
    if isinstance(error, Exception):
        raise error


def _attempt(function: Any, *args: Any) -> Any:
    """The result, or the exception as a value: one rank's error must first be agreed on by all."""
    try:
        return function(*args)
    except Exception as error:  # any kind: DeepSpeed raises what pickle, zip or the file system raise
        return error


def check_same_run(run: Run, start: Start | None) -> None:
    """Refuse to start anew where a run lies, or to go on with other settings. Reads only.

    Raises:
        ValueError: `--resume none` on a used folder; or keys outside FREE_KEYS differ: each is named with both values.
    """
    if start is None and pointer(Path(run.workdir) / "checkpoints", "latest"):
        raise ValueError(f"--resume none needs an unused folder, found a run in {run.workdir}: give another --workdir")
    path = start.folder.parent / "config.json" if start else None
    if path is None or not path.exists():
        return
    before = _flat(json.loads(path.read_text())["run"])
    now = _flat(json.loads(json.dumps(as_dict(run))))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key not in FREE_KEYS]
    if changed:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in changed)
        raise ValueError(f"a continued run must have the settings of {path}, found {listed}: give another --workdir")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_part = isinstance(value, dict) and not key.endswith("_args")
        flat |= _flat(value, f"{prefix}{key}.") if is_part else {prefix + key: value}
    return flat


def write_student(folder: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write student.safetensors (a plain timm state dict, fp32) and student.json (how to rebuild and use it)."""
    temporary = folder / ".student.safetensors.tmp"
    save_file({name: weight.contiguous() for name, weight in weights.items()}, temporary)
    temporary.replace(folder / STUDENT)
    write_json(folder / DESCRIPTION, description)
