"""Save checkpoints: on all ranks, whole or not at all, and never at the price of the previous one.

DeepSpeed says what is to be written; the files are written here, so that a rank that fails, on a full disk for
instance, can tell the others before anybody waits for it. It happens in the foreground: a background thread would have
to copy the state and agree with the other ranks' threads, and the demo's checkpoints cost 0.1 % of its time.
"""

import logging
import shutil
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable

import torch

from vitkd_ds.checkpoint.export import write_student
from vitkd_ds.checkpoint.files import sync_folder, write_text, write_whole
from vitkd_ds.checkpoint.load import Start, TrainState
from vitkd_ds.checkpoint.lock import LockLost
from vitkd_ds.checkpoint.manifest import read_manifest, tag_of, write_manifest
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.config.run_folder import CHECKPOINTS, pointer, tags
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)


class SaveError(RuntimeError):
    """Checkpoints cannot be saved; raised on all ranks."""


@dataclass
class Saver:
    """Save the checkpoints of a run.

    A failed save leaves the previous checkpoint valid and is only warned of, until `max_failures` follow each other.
    """

    workdir: Path
    config: CheckpointConfig
    description: dict[str, Any]
    """For student.json."""
    check: Callable[[], None] = lambda: None
    """Called on rank 0 before a checkpoint is written and before it is published; LockLost ends the run."""
    identity: dict[str, Any] = field(default_factory=dict)
    """For the manifest: what run the checkpoint is of."""
    saved_step: int = -1
    """Step of the last checkpoint in this folder, which may be the one that the run was started from."""
    num_failures: int = 0
    """Failed saves in a row."""

    def __post_init__(self) -> None:
        self.folder = self.workdir / CHECKPOINTS

    def save(self, engine: Any, state: TrainState, *, is_last_chance: bool = False) -> None:
        """Write a checkpoint, publish it as `latest` (and `best`), delete what is no longer kept. Collective.

        Raises:
            SaveError: too many failures in a row, or one at the last chance.
            LockLost: another job has the run folder, or it is gone; nothing is published.
        """
        part = ranks.from_main(self.folder / f".{tag_of(state.step)}.{uuid.uuid4().hex}.part")
        failures = _failures_on_main(self.check) or self._write(engine, state, part)
        if not failures:
            self.num_failures = 0
            self.saved_step = state.step
            return
        ranks.on_main(lambda: shutil.rmtree(part, ignore_errors=True))
        self.num_failures += 1
        try:
            latest = ranks.on_main(lambda: pointer(self.folder, "latest")) or "none"
        except OSError as error:  # where the right to read is lost too; the same on every rank
            latest = f"not to be read ({error})"
        text = f"SAVING FAILED at step {state.step}: {'; '.join(failures)}. The last whole checkpoint is {latest}. "
        if is_last_chance or self.num_failures >= self.config.max_failures:
            raise SaveError(
                f"{text}Stopped after {self.num_failures} failed saves in a row (checkpoint.max_failures is "
                f"{self.config.max_failures}): make room or give the right to write, and start again"
            )
        _warn(f"{text}Training goes on; failure {self.num_failures}, at {self.config.max_failures} in a row it stops.")

    def begin(self, start: Start | None) -> None:
        """Let the run go on from `start` alone: if that is a checkpoint of its own, point `best` to the best one up to
        there, and `latest` to it if it is named, as the next start takes what `latest` names. Collective. Raises
        OSError where that cannot be written."""

        def point() -> None:
            best = tag_of(start.manifest["train_state"]["best_step"])
            if (self.folder / best).is_dir():
                self._write_pointer("best", best)
            else:
                (self.folder / "best").unlink(missing_ok=True)
            if start.is_named:
                self._write_pointer("latest", start.tag)

        if start and start.is_own:
            ranks.on_main(point)

    def note(self, state: TrainState) -> None:
        """Put the result of an evaluation into the checkpoint of this step, and point `best` to it if it is the best.
        Collective. A failure is only warned of: the next start evaluates again."""

        def renew() -> None:
            self.check()
            folder = self.folder / tag_of(state.step)
            manifest = read_manifest(folder)
            write_manifest(folder, manifest["files"], manifest | {"train_state": asdict(state)})
            self._point(state)

        if self.saved_step == state.step and (failures := _failures_on_main(renew)):
            _warn(f"THE EVALUATION OF step {state.step} IS NOT IN ITS CHECKPOINT: {'; '.join(failures)}")

    def _write(self, engine: Any, state: TrainState, part: Path) -> list[str]:
        """Write and publish; return what went wrong, the same on every rank. No rank waits for one that failed."""
        state_files = engine.state_files()
        weights = engine.student_weights()
        files: dict[str, Any] = {}

        def write() -> None:
            for name, content in state_files.items():
                files[name] = write_whole(part / name, lambda file, content=content: torch.save(content, file))
            if ranks.rank() == 0:
                about = {"step": state.step, "world_size": ranks.world_size()}
                files.update(write_student(part, weights, self.description | about))

        if failures := _failures_on_main(lambda: part.mkdir(parents=True)) or ranks.failures(write):
            return failures
        every = {name: entry for entries in ranks.from_all(files) for name, entry in entries.items()}
        content = {"train_state": asdict(state), "layout": engine.layout, "identity": self.identity}
        return _failures_on_main(lambda: self._publish(part, state, every, content))

    def _publish(self, part: Path, state: TrainState, files: dict[str, Any], content: dict[str, Any]) -> None:
        write_manifest(part, files, content)
        self.check()  # again, because writing takes long enough for this job to be considered dead
        final = self.folder / tag_of(state.step)
        if final.exists():  # damaged, or left behind by a start from an older checkpoint
            final.rename(self.folder / f".{final.name}.{uuid.uuid4().hex}.old")
        part.rename(final)
        self._point(state)
        try:
            _delete_old(self.folder, self.config.keep_last)
        except OSError as error:
            _warn(f"{final} is saved, but older files are left, {error!r}: the next checkpoint tries again")

    def _point(self, state: TrainState) -> None:
        for name in ("best", "latest") if state.best_step == state.step else ("latest",):
            self._write_pointer(name, tag_of(state.step))

    def _write_pointer(self, name: str, tag: str) -> None:
        write_text(self.folder / name, tag)
        sync_folder(self.folder)


def _failures_on_main(function: Callable[[], None]) -> list[str]:
    """Call `function` on rank 0; return what it raised, the same on every rank; LockLost is raised on all."""

    def attempt() -> list[str]:
        try:
            function()
        except LockLost:
            raise
        except Exception as error:  # any kind: a failed save must not end one rank while the others wait
            return [f"rank 0: {type(error).__name__}: {error}"]
        return []

    return ranks.on_main(attempt)


def _warn(text: str) -> None:
    if ranks.rank() == 0:
        logger.warning("%s\n%s\n%s", "!" * 80, text, "!" * 80)


def _delete_old(folder: Path, keep_last: int) -> None:
    """Delete checkpoints that are no longer kept, and what crashes left."""
    # Those after `latest` were left behind when a run was started from an older one.
    latest = pointer(folder, "latest")
    kept = {*[tag for tag in tags(folder) if tag <= latest][:keep_last], pointer(folder, "best"), latest}
    for tag in tags(folder):
        if tag not in kept and tag < latest:
            shutil.rmtree(folder / tag)
    for leftover in folder.glob(".step*"):
        shutil.rmtree(leftover)
