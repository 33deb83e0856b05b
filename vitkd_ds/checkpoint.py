"""Save, resume, keep and leave: DeepSpeed checkpoints on all ranks, `latest` and `best`, and the exported student.

A checkpoint is the folder checkpoints/step00001234. DeepSpeed writes `latest` before all shards are on disk, so it is
written here instead, once every rank has finished. Beside DeepSpeed's shards lies the exported student of that step,
so an export never unpickles anything.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitkd_ds import dist
from vitkd_ds.config import Run, as_dict
from vitkd_ds.metrics import write_atomically, write_json

TAG = re.compile(r"step\d{8}")

FREE_KEYS = frozenset(
    {
        "workdir", "resume", "eval_every_epochs", "log_every_steps", "checkpoint.every_steps", "checkpoint.keep_last",
        "data.train", "data.val", "data.num_workers", "micro_batch_size_per_gpu", "teacher.placement",
        "teacher.checkpoint", "ds_config", "compile",
    }
)  # fmt: skip
"""What may differ between a run and its continuation: nothing here changes what is learned beyond rounding."""


@dataclass
class TrainState:
    """What must survive a restart besides the engine's own state. Every random draw is keyed by seed, rank and step,
    and every schedule is a function of the step, so this is all."""

    step: int = 0
    """Optimizer updates done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent; -1 before the first evaluation."""
    best_step: int = 0


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
    kept = set(tags(folder)[:keep_last]) | {pointer(folder, "best"), pointer(folder, "latest")}
    for tag in set(tags(folder)) - kept:
        shutil.rmtree(folder / tag)


def tags(folder: Path) -> list[str]:
    """Checkpoints in a folder, newest first; those that a crash left half written are among them."""
    return sorted((p.name for p in folder.glob("step*") if TAG.fullmatch(p.name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """The checkpoint that `latest` or `best` names, "" if there is none."""
    path = folder / name
    return path.read_text().strip() if path.exists() else ""


def find(resume: str, workdir: Path) -> tuple[Path, str] | None:
    """Where a run starts from: (checkpoints folder, tag), or None for a new run. Reads only; call it on rank 0.

    Raises:
        ValueError: a path without a checkpoint.
    """
    own = workdir / "checkpoints"
    if resume == "none":
        return None
    if resume == "auto" or pointer(own, "latest"):  # a run that was started from PATH continues in its own folder
        return (own, pointer(own, "latest")) if pointer(own, "latest") else None
    path = Path(resume)
    if TAG.fullmatch(path.name) and path.is_dir():
        return path.parent, path.name
    if pointer(path / "checkpoints", "latest"):
        return path / "checkpoints", pointer(path / "checkpoints", "latest")
    raise ValueError(f"--resume must be auto, none, a run folder or a checkpoint (…/step00001234), found {resume}")


def restore(engine: Any, resume: str, workdir: Path, device: torch.device) -> TrainState:
    """Load what `resume` names into the engine, or start anew. Collective.

    A checkpoint that some rank cannot read is left by all ranks together for the next older one.

    Raises:
        ValueError: no checkpoint can be read, or see `find`.
    """
    start = dist.from_main(_attempt(find, resume, workdir))
    if isinstance(start, Exception):
        raise start
    if start is None:
        return TrainState()
    folder, newest = start
    on_main(lambda: _check_world_size(folder / newest))
    candidates = [newest] + [tag for tag in dist.from_main(tags(folder)) if tag < newest]
    for tag in candidates:
        client_state = _attempt(engine.load, str(folder), tag)
        is_error = isinstance(client_state, Exception)
        if dist.all_true(not is_error, device):
            return TrainState(**client_state["train_state"])
        reason = repr(client_state) if is_error else "another rank could not read it"
        print(f"rank {dist.rank()}: checkpoint {folder / tag} left for an older one: {reason}", flush=True)
    raise ValueError(f"{folder} must hold a whole checkpoint, found {', '.join(candidates)}, none of them readable")


def _check_world_size(checkpoint: Path) -> None:
    path = checkpoint / "student.json"
    ranks = json.loads(path.read_text())["world_size"] if path.exists() else dist.world_size()
    if ranks != dist.world_size():
        raise ValueError(
            f"{checkpoint} must be continued by as many ranks as wrote it, {ranks}, found {dist.world_size()}: start "
            f"{ranks} ranks, or train on from its weights with --student.init={checkpoint / 'student.safetensors'}"
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


def check_workdir(run: Run, workdir: Path) -> None:
    """Refuse to continue a run with other settings, or to start anew where a run lies. Reads only.

    Raises:
        ValueError: `--resume none` on a used folder; or keys outside FREE_KEYS differ: each is named with both values.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    if run.resume == "none":
        raise ValueError(f"--resume none needs an unused folder, found a run in {workdir}: give another --workdir")
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
    temporary.replace(folder / "student.safetensors")
    write_json(folder / "student.json", description)
