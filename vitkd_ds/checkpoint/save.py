"""Save checkpoints atomically over all ranks; a failed save never harms the previous one.

DeepSpeed provides the content, and this module writes the files. So a rank that fails, for example on a full disk, can
tell the others before they wait for it. Saving runs in the foreground: a background thread would need a copy of the
state and agreement between the ranks' threads, and saving takes only 0.1 % of the demo's time.
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
    """Failure to save checkpoints; raised on all ranks."""


@dataclass
class Saver:
    """Writer of a run's checkpoints.

    A failed save leaves the previous checkpoint valid. It only causes a warning, unless there are
    `checkpoint.max_failures` in a row.
    """

    workdir: Path
    config: CheckpointConfig
    description: dict[str, Any]
    """Content of student.json."""
    check: Callable[[], None] = lambda: None
    """Function that rank 0 calls before it writes a checkpoint and before it publishes one. LockLost ends the run."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Identity of the run, for the manifest."""
    saved_step: int = -1
    """Step of the last checkpoint in this folder, which may be the run's starting point."""
    num_failures: int = 0
    """Number of consecutive failed saves."""

    def __post_init__(self) -> None:
        self.folder = self.workdir / CHECKPOINTS

    def save(self, engine: Any, state: TrainState, *, is_last_chance: bool = False) -> None:
        """Write a checkpoint, publish it as `latest` (and `best`), and delete old ones. Collective.

        Raises:
            SaveError: too many failures in a row, or a failure with `is_last_chance`.
            LockLost: another job took over the run folder, or the folder was removed; nothing is published.
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
        except OSError as error:  # read permission is lost as well; equal on every rank
            latest = f"unreadable ({error})"
        text = f"SAVING FAILED at step {state.step}: {'; '.join(failures)}. The last complete checkpoint is {latest}. "
        if is_last_chance or self.num_failures >= self.config.max_failures:
            raise SaveError(
                f"{text}Stopped after {self.num_failures} failed saves in a row (checkpoint.max_failures is "
                f"{self.config.max_failures}). Free disk space or restore write permission, and rerun the same command "
                "to resume."
            )
        _warn(
            f"{text}Training continues (failure {self.num_failures}; it stops at {self.config.max_failures} in a row)."
        )

    def begin(self, start: Start | None) -> None:
        """Reset `best` and `latest` to fit `start`, if that is a checkpoint in this folder. Collective.

        `best` becomes the best checkpoint up to `start`. `latest` becomes `start` if --resume names it, because the
        next launch uses `latest`.

        Raises:
            OSError: a pointer cannot be written.
        """

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
        """Add an evaluation's result to this step's checkpoint, and update `best`. Collective.

        A failure only causes a warning, because the next launch evaluates again.
        """

        def renew() -> None:
            self.check()
            folder = self.folder / tag_of(state.step)
            manifest = read_manifest(folder)
            write_manifest(folder, manifest["files"], manifest | {"train_state": asdict(state)})
            self._point(state)

        if self.saved_step == state.step and (failures := _failures_on_main(renew)):
            _warn(f"CANNOT STORE THE EVALUATION of step {state.step} in its checkpoint: {'; '.join(failures)}")

    def _write(self, engine: Any, state: TrainState, part: Path) -> list[str]:
        """Write and publish a checkpoint; return the failures, equal on every rank. No rank waits for a failed one."""
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
        self.check()  # again, because after a long write another job may have considered this one dead
        final = self.folder / tag_of(state.step)
        if final.exists():  # damaged, or left over because the run restarted from an older checkpoint
            final.rename(self.folder / f".{final.name}.{uuid.uuid4().hex}.old")
        part.rename(final)
        self._point(state)
        try:
            _delete_old(self.folder, self.config.keep_last)
        except OSError as error:
            _warn(f"saved {final}, but cannot delete older files, retrying at the next checkpoint: {error!r}")

    def _point(self, state: TrainState) -> None:
        for name in ("best", "latest") if state.best_step == state.step else ("latest",):
            self._write_pointer(name, tag_of(state.step))

    def _write_pointer(self, name: str, tag: str) -> None:
        write_text(self.folder / name, tag)
        sync_folder(self.folder)


def _failures_on_main(function: Callable[[], None]) -> list[str]:
    """Call `function` on rank 0 and return its failure, equal on every rank; raise LockLost on all ranks."""

    def attempt() -> list[str]:
        try:
            function()
        except LockLost:
            raise
        except Exception as error:  # any exception: a failed save must not end one rank while the others wait
            return [f"rank 0: {type(error).__name__}: {error}"]
        return []

    return ranks.on_main(attempt)


def _warn(text: str) -> None:
    if ranks.rank() == 0:
        logger.warning("%s\n%s\n%s", "!" * 80, text, "!" * 80)


def _delete_old(folder: Path, keep_last: int) -> None:
    """Delete checkpoints beyond `keep_last`, except `best` and `latest`, and leftovers of crashes."""
    # Checkpoints after `latest` remain if the run was restarted from an older one; they do not count.
    latest = pointer(folder, "latest")
    kept = {*[tag for tag in tags(folder) if tag <= latest][:keep_last], pointer(folder, "best"), latest}
    for tag in tags(folder):
        if tag not in kept and tag < latest:
            shutil.rmtree(folder / tag)
    for leftover in folder.glob(".step*"):
        shutil.rmtree(leftover)
