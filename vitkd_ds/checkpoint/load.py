"""Find the checkpoint that a run starts from, check that it is whole, and restore the run from it.

The folder checkpoints/step00001234 is written under a name with a dot. When every rank's files are on the disk and the
manifest lists them, it gets its name, and then `latest` names it. So each named folder was whole once, and all ranks
check that it still is before anything is loaded. The exported student lies beside DeepSpeed's state files, so exporting
unpickles nothing.
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
    """State that must survive a restart besides the engine's own.

    Every random draw is keyed by seed, rank and step, and every schedule is a function of the step, so this is all.
    """

    steps_per_epoch: int
    """Updates in an epoch of the data that the checkpoint was made with."""
    data: int
    """Fingerprint of the training images; another number means other images, or the same ones numbered otherwise."""
    step: int = 0
    """Optimizer updates done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent, or without labels the best cka; -1 before the first evaluation."""
    best_step: int = 0
    result: dict[str, float] = field(default_factory=dict)
    """Result of the last evaluation."""
    result_step: int = -1
    timed_s: float = 0.0
    """Seconds of the timed steps so far, for the speed in the summary."""
    timed_steps: int = 0


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from."""

    folder: Path
    """The checkpoints folder."""
    tag: str
    is_own: bool
    """Whether it lies in the run's own folder."""
    is_named: bool
    """Whether `--resume PATH` names it, so that no other checkpoint will do."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """The manifest that `newest_whole` checked; empty before."""

    @property
    def path(self) -> Path:
        """The checkpoint's folder."""
        return self.folder / self.tag

    @property
    def num_steps(self) -> int:
        """Updates that it has done, by the manifest."""
        return self.manifest["train_state"]["step"]

    @property
    def config(self) -> Path:
        """config.json of the run that made the checkpoint."""
        return self.folder.parent / CONFIG


def find(resume: str, workdir: Path) -> Start | None:
    """Find the checkpoint that a run starts from; None for a new run. Reads only.

    A run that began with a named checkpoint, of another run or an earlier one of its own, goes on from its newest by
    the same command, also when the named one is gone.

    Raises:
        ValueError: a path without a checkpoint, or a damaged config.json.
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
        raise ValueError(f"--resume must be auto, none, a run folder or a checkpoint in one, found {resume}")
    if folder.resolve() == own.resolve():
        return Start(own, tag, is_own=True, is_named=True)
    if latest:
        return Start(own, latest, is_own=True, is_named=False)
    return Start(folder, tag, is_own=False, is_named=True)


def _has_begun_with(path: Path, workdir: Path) -> bool:
    """Whether the last start of a run had this path as --resume, by config.json, which is written once it has begun."""
    config = workdir / CONFIG
    if not config.exists():
        return False
    before = read_json(config, {"run.resume": str})["run"]["resume"]
    return before not in ("auto", "none") and Path(before).resolve() == path.resolve()


def newest_whole(start: Start | None) -> Start | None:
    """Check the files of the checkpoint to start from, and take an older one if they are damaged and it is not named.

    Collective: the ranks share the files. The result, with the manifest, is the same on every rank.

    Raises:
        ValueError: none is whole.
        Unreadable: the disk failed, so nobody knows; an older one would cost the steps since.
    """
    if start is None:
        return None
    older = [] if start.is_named else [tag for tag in ranks.from_main(tags(start.folder)) if tag < start.tag]
    latest = pointer(start.folder, "latest")
    if ranks.rank() == 0 and latest and not start.is_named and latest != start.tag:
        logger.warning("checkpoint %s is not there and passed over, though `latest` names it", start.folder / latest)
    reasons = []
    for tag in [start.tag, *older]:
        folder = start.folder / tag
        try:
            manifest = ranks.on_main(lambda folder=folder: read_manifest(folder))
        except ValueError as error:  # the same on every rank
            reason = str(error)
        else:
            check = partial(check_files, folder, manifest, part=ranks.rank(), num_parts=ranks.world_size())
            found = ranks.from_all(ranks.together(check))
            reason = "; ".join(text for text in found if text)
        if not reason:
            return replace(start, tag=tag, manifest=manifest)
        reasons.append(f"{tag}: {reason}")
        if ranks.rank() == 0:
            logger.warning("checkpoint %s is damaged and passed over: %s", folder, reason)
    raise ValueError(
        f"{start.folder} must hold a whole checkpoint, found {'; '.join(reasons)}: put the files back, or give another "
        "--workdir"
    )


def restore(engine: Any, start: Start | None, *, steps_per_epoch: int, data: int) -> TrainState:
    """Load a whole checkpoint, of any number of ranks, into a `StudentEngine`; without one return the state of a new
    run. Collective. Raises ValueError if a version with another state wrote it."""
    if start is None:
        return TrainState(steps_per_epoch, data)
    try:
        state = TrainState(**start.manifest["train_state"])
    except TypeError as error:
        raise ValueError(
            f"{start.path} must have the state that this version writes, found another one ({error}): go on "
            "with the version that wrote it, which config.json names"
        ) from None
    engine.load(start.path)
    # The best checkpoint of another run is not in this run's folder.
    return state if start.is_own else replace(state, best_top1=-1.0, best_step=0)
