"""Where a run starts from, what must survive a restart, and the exported student; `vitkd_ds.checkpoint.save` writes.

A checkpoint is the folder checkpoints/step00001234. It is written under a name with a dot; when every rank's files are
on the disk and the manifest lists them, the folder gets its name, and then `latest` names it. So a folder with such a
name was whole once, and whether it still is is checked by all ranks before anything in it is loaded. Beside DeepSpeed's
shards lies the exported student of that step, so an export never unpickles anything.
"""

import json
import re
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Callable

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vitkd_ds.checkpoint.manifest import check_files, read_manifest, write_file
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.engine import ranks
from vitkd_ds.train.log import write_json

STUDENT, DESCRIPTION = "student.safetensors", "student.json"
CONVERTED = ".universal"
"""In the checkpoints folder, for a moment: a checkpoint of another number of ranks or ZeRO stage, converted."""
TAG = re.compile(r"step\d{8}")

FREE_KEYS = frozenset(
    {
        "workdir", "resume", "eval_every_epochs", "log_every_steps", "checkpoint.every_steps", "checkpoint.keep_last",
        "checkpoint.max_failures", "data.train", "data.val", "data.num_workers", "data.backend", "data.on_bad",
        "teacher.placement", "compile", "ds_config", "timeout_minutes", "micro_batch_size_per_gpu",
        "student.checkpoint_activations",
    }
)  # fmt: skip
"""What may differ between a run and its continuation, as it changes what is learned by rounding at most; the size of a
micro-batch besides, which like the number of ranks changes the draws of mixing and masks. The data may have moved: what
it is is compared by `TrainState`."""


@dataclass
class TrainState:
    """What must survive a restart besides the engine's own state. Every random draw is keyed by seed, rank and step,
    and every schedule is a function of the step, so this is all."""

    steps_per_epoch: int
    """Of the data that the checkpoint was made with."""
    data: int
    """Fingerprint of the training images: another number means other images, or other numbers of the same ones."""
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
    manifest: dict[str, Any] = field(default_factory=dict)
    """What `newest_whole` checked; empty before."""

    @property
    def path(self) -> Path:
        """Of the checkpoint."""
        return self.folder / self.tag


def tags(folder: Path) -> list[str]:
    """Published checkpoints in a folder, newest first."""
    return sorted((p.name for p in folder.glob("step*") if TAG.fullmatch(p.name)), reverse=True)


def pointer(folder: Path, name: str) -> str:
    """The checkpoint that `latest` or `best` names, "" if there is none."""
    path = folder / name
    text = path.read_text(errors="replace").strip() if path.exists() else ""
    return text if TAG.fullmatch(text) else ""


def newest(folder: Path) -> str:
    """The checkpoint to go on from, "" if there is none: `latest`, or where that is missing or damaged the newest."""
    return pointer(folder, "latest") or next(iter(tags(folder)), "")


def find(resume: str, workdir: Path) -> Start | None:
    """Where a run starts from; None for a new run. Reads only.

    A run that was started from another run's checkpoint and has its own by now goes on in its own folder, so that the
    same command can be given again.

    Raises:
        ValueError: a path without a checkpoint.
    """
    own = workdir / "checkpoints"
    latest = newest(own)
    if resume == "none" or (resume == "auto" and not latest):
        return None
    if resume == "auto":
        return Start(own, latest, is_own=True, is_named=False)
    path = Path(resume)
    folder, tag = path / "checkpoints", newest(path / "checkpoints")
    if TAG.fullmatch(path.name) and path.is_dir():
        folder, tag = path.parent, path.name
    if not tag:
        raise ValueError(f"--resume must be auto, none, a run folder or a checkpoint in one, found {resume}")
    if folder.resolve() == own.resolve():
        return Start(own, tag, is_own=True, is_named=True)
    if latest:
        return Start(own, latest, is_own=True, is_named=False)
    return Start(folder, tag, is_own=False, is_named=True)


def newest_whole(start: Start | None) -> Start | None:
    """Check the files of the checkpoint to start from, before anything is loaded; take an older one if it is damaged.

    Collective: the files are shared out among the ranks. One that was named by `--resume PATH` is not replaced.

    Returns:
        `start` with the newest whole checkpoint and its manifest, the same on every rank.

    Raises:
        ValueError: none is whole.
    """
    if start is None:
        return None
    older = [] if start.is_named else [tag for tag in ranks.from_main(tags(start.folder)) if tag < start.tag]
    reasons = []
    for tag in [start.tag, *older]:
        folder = start.folder / tag
        manifest, reason = ranks.from_main(_read_and_say(folder) if ranks.rank() == 0 else None)
        if not reason:
            found = ranks.from_all(check_files(folder, manifest, part=ranks.rank(), num_parts=ranks.world_size()))
            reason = "; ".join(text for text in found if text)
        if not reason:
            return replace(start, tag=tag, manifest=manifest)
        reasons.append(f"{tag}: {reason}")
        if ranks.rank() == 0:
            print(f"checkpoint {folder} is damaged and passed over: {reason}", file=sys.stderr, flush=True)
    raise ValueError(
        f"{start.folder} must hold a whole checkpoint, found {'; '.join(reasons)}: put the files back, or give another "
        "--workdir"
    )


def _read_and_say(folder: Path) -> tuple[dict[str, Any], str]:
    try:
        return read_manifest(folder), ""
    except (OSError, ValueError) as error:
        return {}, str(error)


def restore(
    engine: Any,
    start: Start | None,
    *,
    workdir: Path,
    steps_per_epoch: int,
    data: int,
    convert: Callable[[Path, Path], None],
) -> TrainState:
    """Load a whole checkpoint into the engine, or start anew. Collective.

    Args:
        engine: a `vitkd_ds.engine.student.StudentEngine`, built for the layout of `start`.
        start: from `newest_whole`.
        workdir: this run's folder, where a checkpoint of another layout is converted.
        steps_per_epoch: of the data that is here now; `data` is its fingerprint.
        convert: `vitkd_ds.engine.state_files.convert`.

    Raises:
        ValueError: the checkpoint was made with other data.
    """
    if start is None:
        return TrainState(steps_per_epoch, data)
    state = TrainState(**start.manifest["train_state"])
    if state.steps_per_epoch != steps_per_epoch:
        raise ValueError(
            f"{start.path} was made with {state.steps_per_epoch} steps per epoch, found {steps_per_epoch}: give the "
            "same data.train and global_batch_size"
        )
    if state.data != data:
        raise ValueError(
            f"{start.path} was made with training images of fingerprint {state.data}, found {data}: give the same "
            "data.train, or a copy of it; packed again, images have other numbers"
        )
    if start.manifest["layout"] == engine.layout:
        engine.load(str(start.folder), start.tag)
    else:
        if ranks.rank() == 0:
            print(f"{start.path}: from {start.manifest['layout']} to {engine.layout}", file=sys.stderr, flush=True)
        temporary = workdir / "checkpoints" / CONVERTED
        on_main(lambda: shutil.rmtree(temporary, ignore_errors=True))
        on_main(lambda: convert(start.path, temporary / start.tag))
        engine.load(str(temporary), start.tag)
        ranks.barrier()
        on_main(lambda: shutil.rmtree(temporary))
    # The best of another run is not in this one's folder.
    return state if start.is_own else replace(state, best_top1=-1.0, best_step=0)


def on_main(function: Callable[[], None]) -> None:
    """Run `function` on rank 0; its error is raised on every rank. Collective."""
    error = ranks.from_main(attempt(function) if ranks.rank() == 0 else None)
    if isinstance(error, Exception):
        raise error


def attempt(function: Any, *args: Any) -> Any:
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
    if start is None and newest(Path(run.workdir) / "checkpoints"):
        raise ValueError(f"--resume none needs an unused folder, found a run in {run.workdir}: give another --workdir")
    path = start.folder.parent / "config.json" if start else None
    if path is None or not path.exists():
        return
    try:
        before = _flat(json.loads(path.read_text())["run"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must say what run the checkpoints beside it are of, found {error!r}: put it back, or give another "
            "--workdir"
        ) from None
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
    content = safetensors_bytes({name: weight.contiguous() for name, weight in weights.items()})
    write_file(temporary, lambda file: file.write(content))
    temporary.replace(folder / STUDENT)
    write_json(folder / DESCRIPTION, description)
