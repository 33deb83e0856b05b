"""Find the checkpoint to start from, check that it is intact, and restore the run.

A checkpoint folder such as checkpoints/step00001234 is written under a temporary name that starts with a dot. Once all
ranks' files are on disk and listed in the manifest, the folder is renamed, and `latest` then points to it. So a folder
without the dot was intact when it got its name. Before a checkpoint is loaded, all ranks check that it is still intact.
The exported student is stored next to DeepSpeed's files in separate files, so exporting it does not unpickle anything.
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
    """Updates per epoch on the training images of the run that saved this state."""
    data: int
    """Fingerprint of the training images. It differs for other images, and for the same images in another order."""
    step: int = 0
    """Optimizer updates done."""
    best_top1: float = -1.0
    """Best validation top-1 in percent, or best `cka` without labels; -1 before the first evaluation."""
    best_step: int = 0
    result: dict[str, float] = field(default_factory=dict)
    """Result of the last evaluation."""
    result_step: int = -1
    timed_s: float = 0.0
    """Total seconds of the timed steps, for the throughput in summary.json."""
    timed_steps: int = 0


@dataclass(frozen=True)
class Start:
    """Checkpoint that a run starts from."""

    folder: Path
    """The folder `checkpoints` that contains the checkpoint."""
    tag: str
    is_own: bool
    """Whether the checkpoint is in the run's own folder."""
    is_named: bool
    """Whether the checkpoint was found through `--resume PATH`. If so, no older checkpoint may replace it."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """Content of the checkpoint's manifest once `newest_whole` has checked it; {} until then."""

    @property
    def path(self) -> Path:
        """Folder of the checkpoint."""
        return self.folder / self.tag

    @property
    def num_steps(self) -> int:
        """Number of optimizer updates done, from the manifest."""
        return self.manifest["train_state"]["step"]

    @property
    def config(self) -> Path:
        """Path of config.json of the run that saved the checkpoint."""
        return self.folder.parent / CONFIG


def find(resume: str, workdir: Path) -> Start | None:
    """Find the checkpoint to start from; return None for a new run. Nothing is written.

    If a run was started with --resume PATH (another run's checkpoint, or an earlier checkpoint of this folder),
    rerunning the same command resumes from the run's newest checkpoint, even if PATH no longer exists.

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
    """Return whether the run's last launch was given --resume with this path, according to its config.json."""
    config = workdir / CONFIG
    if not config.exists():
        return False
    before = read_json(config, {"run.resume": str})["run"]["resume"]
    return before not in ("auto", "none") and Path(before).resolve() == path.resolve()


def newest_whole(start: Start | None) -> Start | None:
    """Check the checkpoint to start from; return it with its manifest, or None for a new run. Collective.

    If the checkpoint is damaged, and the user did not ask for it by --resume PATH, try older ones. Each rank checks a
    share of the files. The result is equal on all ranks.

    Raises:
        ValueError: no checkpoint is intact.
        Unreadable: the disk failed. No older checkpoint is tried, because this one may be intact and has more steps.
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
    """Load a checkpoint into a `StudentEngine`, and return the checkpoint's training state. Collective.

    The checkpoint may have been saved by any number of ranks. If `start` is None, return the state of a new run.

    Raises:
        ValueError: the checkpoint was saved by a version whose training state has other fields, or it does not fit the
            engine.
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
