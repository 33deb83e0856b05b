"""Find the checkpoint to start from, check that it is intact, and restore the run.

A checkpoint folder such as checkpoints/step00001234 is written under a temporary name that starts with a dot. Once all
ranks' files are on disk and listed in the manifest, the folder is renamed, and `latest` then points to it. So each
named folder was intact at first. Before loading, all ranks check that it still is. The exported student has its own
files next to DeepSpeed's, so exporting unpickles nothing.
"""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.manifest import check_files, read_manifest
from vitkd_ds.config.run_folder import CHECKPOINTS, CONFIG, TAG, newest, pointer, read_json, tags
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)


@dataclass
class TrainState:
    """Training state outside the engine that must survive a restart.

    Nothing else is needed: every random draw is keyed by seed, rank and step, and every schedule is a function of the
    step.
    """

    steps_per_epoch: int
    """Updates per epoch with the data used for the checkpoint."""
    data: int
    """Fingerprint of the training images; it differs for other images or another numbering."""
    step: int = 0
    """Optimizer updates done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent, or best `cka` without labels; -1 before the first evaluation."""
    best_step: int = 0
    result: dict[str, float] = field(default_factory=dict)
    """Result of the last evaluation."""
    result_step: int = -1
    timed_s: float = 0.0
    """Total seconds of the timed steps, for the throughput in the summary."""
    timed_steps: int = 0


@dataclass(frozen=True)
class Start:
    """Checkpoint that a run starts from."""

    folder: Path
    """Folder `checkpoints` that contains it."""
    tag: str
    is_own: bool
    """Whether it is in the run's own folder."""
    is_named: bool
    """Whether `--resume PATH` names it, so that no older checkpoint may replace it."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """Manifest, once `newest_whole` has checked it; empty before."""

    @property
    def path(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / self.tag

    @property
    def num_steps(self) -> int:
        """Updates done, from the manifest."""
        return self.manifest["train_state"]["step"]

    @property
    def config(self) -> Path:
        """Path of config.json of the run that saved the checkpoint."""
        return self.folder.parent / CONFIG


def find(resume: str, workdir: Path) -> Start | None:
    """Find the checkpoint to start from; return None for a new run. Reads only.

    If a run was started from a named checkpoint (another run's, or an earlier one in this folder), rerunning the same
    command resumes from its newest checkpoint, even if the named one no longer exists.

    Raises:
        ValueError: `resume` is a path without a checkpoint, or config.json is damaged.
    """
    own = workdir / CHECKPOINTS
    latest = newest(own)
    if resume == "none" or (resume == "auto" and not latest):
        return None
    path = Path(resume)
    if resume == "auto" or (latest and _has_begun_with(path, workdir)):
        return Start(own, latest, is_own=True, is_named=False)
    folder, tag = path / CHECKPOINTS, newest(path / CHECKPOINTS)
    if TAG.fullmatch(path.name) and path.is_dir():
        folder, tag = path.parent, path.name
    if not tag:
        raise ValueError(f"--resume must be auto, none, a run folder or a checkpoint in one, got {resume}")
    if folder.resolve() == own.resolve():
        return Start(own, tag, is_own=True, is_named=True)
    if latest:
        return Start(own, latest, is_own=True, is_named=False)
    return Start(folder, tag, is_own=False, is_named=True)


def _has_begun_with(path: Path, workdir: Path) -> bool:
    """Return whether config.json, written at the last launch of the run, has this path as run.resume."""
    config = workdir / CONFIG
    if not config.exists():
        return False
    before = read_json(config, {"run.resume": str})["run"]["resume"]
    return before not in ("auto", "none") and Path(before).resolve() == path.resolve()


def newest_whole(start: Start | None) -> Start | None:
    """Check the files of the starting checkpoint; if they are damaged and it is not named, try older ones. Collective.

    Each rank checks a share of the files. The result includes the manifest and is equal on all ranks.

    Raises:
        ValueError: no checkpoint is intact.
        Unreadable: the disk failed, so the checkpoint may be intact, and an older one would lose steps.
    """
    if start is None:
        return None
    older = [] if start.is_named else [tag for tag in ranks.from_main(tags(start.folder)) if tag < start.tag]
    latest = pointer(start.folder, "latest")
    if ranks.rank() == 0 and latest and not start.is_named and latest != start.tag:
        logger.warning("skipping missing checkpoint %s, which `latest` points to", start.folder / latest)
    reasons = []
    for tag in [start.tag, *older]:
        folder = start.folder / tag
        try:
            manifest = ranks.on_main(lambda folder=folder: read_manifest(folder))
        except ValueError as error:  # equal on every rank
            reason = str(error)
        else:
            check = partial(check_files, folder, manifest, part=ranks.rank(), num_parts=ranks.world_size())
            found = ranks.from_all(ranks.together(check))
            reason = "; ".join(text for text in found if text)
        if not reason:
            return replace(start, tag=tag, manifest=manifest)
        reasons.append(f"{tag}: {reason}")
        if ranks.rank() == 0:
            logger.warning("skipping damaged checkpoint %s: %s", folder, reason)
    raise ValueError(
        f"no intact checkpoint in {start.folder}: {'; '.join(reasons)}. Restore the files, or pass another --workdir."
    )


def restore(engine: Any, start: Start | None, *, steps_per_epoch: int, data: int) -> TrainState:
    """Load a checkpoint into a `StudentEngine`, and return its training state. Collective.

    The checkpoint may come from any number of ranks. Without one (`start` is None), return a new run's state.

    Raises:
        ValueError: another version saved a different state, or the checkpoint does not fit the engine.
    """
    if start is None:
        return TrainState(steps_per_epoch, data)
    try:
        state = TrainState(**start.manifest["train_state"])
    except TypeError as error:
        raise ValueError(
            f"{start.path} was saved by another version: {error}. Resume with the version of vitkd_ds that the "
            "run's config.json names."
        ) from None
    engine.load(start.path)
    # Another run's best checkpoint is not in this run's folder.
    return state if start.is_own else replace(state, best_top1=-1.0, best_step=0)
