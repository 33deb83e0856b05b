"""Save checkpoints atomically over all ranks. A failed save never harms an earlier checkpoint.

DeepSpeed provides the content of the files, and this module writes them. So a rank that fails, for example on a full
disk, can tell the other ranks before they wait for it. Training waits while a checkpoint is saved. Saving in a
background thread would need a copy of the state, and agreement between the threads of all ranks. In the demo, saving
takes only 0.1 % of the time.
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
    """Raised on all ranks if too many saves in a row have failed, or if the last save of a launch has failed."""


@dataclass
class Saver:
    """Writer of a run's checkpoints.

    A failed save leaves the previous checkpoint valid. It only causes a warning, until `checkpoint.max_failures` saves
    in a row have failed.
    """

    workdir: Path
    config: CheckpointConfig
    description: dict[str, Any]
    """Content of student.json."""
    check: Callable[[], None] = lambda: None
    """Function that rank 0 calls before it writes or publishes a checkpoint. It raises LockLost to end the run."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Settings and fingerprints of the run's inputs, to be stored in the manifest."""
    saved_step: int = -1
    """Step of the checkpoint that was last saved to this folder or restored from it; -1 if there is none."""
    num_failures: int = 0
    """Number of consecutive failed saves."""

    def __post_init__(self) -> None:
        self.folder = self.workdir / CHECKPOINTS

    def save(self, engine: Any, state: TrainState, *, is_last_chance: bool = False) -> None:
        """Write a checkpoint, publish it as `latest` (and `best`), and delete old ones. Collective.

        Raises:
            SaveError: `checkpoint.max_failures` saves in a row have failed; or this save has failed, and
                `is_last_chance` says that the run will not save again.
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
        except OSError as error:  # the folder cannot be read either; every rank gets this error
            latest = f"unreadable ({error})"
        text = f"SAVING FAILED at step {state.step}: {'; '.join(failures)}. The last complete checkpoint is {latest}. "
        if is_last_chance or self.num_failures >= self.config.max_failures:
            raise SaveError(
                f"{text}Stopped after {self.num_failures} failed saves in a row (checkpoint.max_failures is "
                f"{self.config.max_failures}). Free disk space or restore write permission, and rerun the same command "
                "to resume."
            )
        _warn(
            f"{text}Training continues. This is failed save {self.num_failures} in a row; training stops at number "
            f"{self.config.max_failures}."
        )

    def begin(self, start: Start | None) -> None:
        """If `start` is a checkpoint in this folder, update the files `best` and `latest` to match it. Collective.

        `best` then points to the best checkpoint up to `start`, or is removed if that checkpoint no longer exists. If
        --resume names `start`, `latest` then points to `start`, because the next launch starts from `latest`.

        Raises:
            OSError: `best` or `latest` cannot be written.
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
        """Add an evaluation's result to this step's checkpoint, if there is one, and update `best`. Collective.

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
        """Write and publish a checkpoint. Return the error messages of all ranks that failed, or [], on every rank.

        No rank waits for a rank that has failed.
        """
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
        self.check()  # again, because another job may have considered this one dead during a long write
        final = self.folder / tag_of(state.step)
        if final.exists():  # damaged, or left over because the run restarted from an older checkpoint
            final.rename(self.folder / f".{final.name}.{uuid.uuid4().hex}.old")
        part.rename(final)
        self._point(state)
        try:
            _delete_old(self.folder, self.config.keep_last)
        except OSError as error:
            _warn(f"saved {final}, but cannot delete older checkpoints; retrying at the next one: {error!r}")

    def _point(self, state: TrainState) -> None:
        for name in ("best", "latest") if state.best_step == state.step else ("latest",):
            self._write_pointer(name, tag_of(state.step))

    def _write_pointer(self, name: str, tag: str) -> None:
        write_text(self.folder / name, tag)
        sync_folder(self.folder)


def _failures_on_main(function: Callable[[], None]) -> list[str]:
    """Call `function` on rank 0. On every rank, return a list with the error message, or [] if the call succeeded.

    If `function` raises LockLost, raise it on every rank instead.
    """

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
    """Delete all but the newest `keep_last` checkpoints, `best` and `latest`. Also delete leftovers of crashes."""
    # Checkpoints after `latest` exist if the run was restarted from an older one; they are neither counted nor deleted.
    latest = pointer(folder, "latest")
    kept = {*[tag for tag in tags(folder) if tag <= latest][:keep_last], pointer(folder, "best"), latest}
    for tag in tags(folder):
        if tag not in kept and tag < latest:
            shutil.rmtree(folder / tag)
    for leftover in folder.glob(".step*"):
        shutil.rmtree(leftover)
