"""Writes checkpoints: on all ranks, whole or not at all, and never at the price of the previous one.

DeepSpeed says what is to be written (`StudentEngine.shards`); the files are written here, so that a rank that fails,
on a full disk for instance, can tell the others before anybody waits for it. In the foreground: a background thread
would have to copy the state first and agree with the other ranks' threads later, and the demo's checkpoints cost 0.1 %
of its time (EXPERIMENTS.md).
"""

import json
import shutil
import sys
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from vitkd_ds.checkpoint.load import CONVERTED, DESCRIPTION, STUDENT, TrainState, attempt, on_main, pointer, tags
from vitkd_ds.checkpoint.manifest import read_manifest, sync_folder, tag_of, write_file, write_manifest
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine import ranks
from vitkd_ds.train.log import write_atomically


class SaveError(RuntimeError):
    """Checkpoints cannot be saved; raised on all ranks."""


class Saver:
    """Writes the checkpoints of a run. A failed save leaves the previous checkpoint valid and is only warned of, until
    `max_failures` of them follow each other.

    Args:
        workdir: the run folder.
        config: how many are kept, how many may fail.
        description: for student.json.
        check: called on rank 0 before each checkpoint; what it raises ends the run.
        saved_step: of the checkpoint that the run was started from, if it lies in this folder.
    """

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig,
        description: dict[str, Any],
        *,
        check: Callable[[], None] = lambda: None,
        saved_step: int = -1,
    ) -> None:
        self.folder, self.config, self.description = workdir / "checkpoints", config, description
        self.check, self.saved_step = check, saved_step
        self.num_failures = 0
        """In a row."""

    def save(self, engine: Any, state: TrainState, *, is_last_chance: bool = False) -> None:
        """Write a checkpoint, publish it as `latest` (and `best`), delete what is no longer kept. Collective.

        Args:
            engine: a `vitkd_ds.engine.student.StudentEngine`.
            state: goes into the manifest.
            is_last_chance: do not tolerate a failure.

        Raises:
            SaveError: too many failures in a row.
        """
        on_main(self.check)
        part = ranks.from_main(self.folder / f".{tag_of(state.step)}.{uuid.uuid4().hex}.part")
        failures = self._write(engine, state, part)
        if not failures:
            self.num_failures, self.saved_step = 0, state.step
            return
        on_main(lambda: shutil.rmtree(part, ignore_errors=True))
        self.num_failures += 1
        latest = ranks.from_main(self._latest())
        text = f"SAVING FAILED at step {state.step}: {'; '.join(failures)}. The last whole checkpoint is {latest}. "
        if is_last_chance or self.num_failures >= self.config.max_failures:
            raise SaveError(
                f"{text}Stopped after {self.num_failures} failed saves in a row (checkpoint.max_failures is "
                f"{self.config.max_failures}): make room or give the right to write, and start again"
            )
        _warn(f"{text}Training goes on; failure {self.num_failures}, at {self.config.max_failures} in a row it stops.")

    def note(self, state: TrainState) -> None:
        """Put what an evaluation found into the checkpoint of this step, and point `best` to it if it is. Collective.

        A failure is only warned of: the next start evaluates again.
        """
        if self.saved_step == state.step and (failures := self._on_main(lambda: self._renew(state))):
            _warn(f"THE EVALUATION OF step {state.step} IS NOT IN ITS CHECKPOINT: {'; '.join(failures)}")

    def _latest(self) -> str:
        try:
            return pointer(self.folder, "latest") or "none"
        except OSError as error:  # with the right to read lost too; no rank may be left waiting
            return f"not to be read ({error.strerror})"

    def _write(self, engine: Any, state: TrainState, part: Path) -> list[str]:
        """Write and publish; returns what went wrong, on every rank alike. No rank waits for one that failed."""
        objects, weights = engine.shards(), engine.student_weights()
        errors = self._on_main(lambda: _make_empty(part))
        if not errors:
            files: dict[str, Any] = {}

            def write() -> None:
                for name, content in objects.items():
                    files[name] = write_file(part / name, lambda file, content=content: torch.save(content, file))
                if ranks.rank() == 0:
                    described = self.description | {"step": state.step, "world_size": ranks.world_size()}
                    files.update(_write_student_files(part, weights, described))

            written = ranks.from_all((_failure(write), files))
            errors = [f"rank {rank}: {error}" for rank, (error, _) in enumerate(written) if error]
        if not errors:
            every = {name: entry for _, entries in written for name, entry in entries.items()}
            content = {"train_state": asdict(state), "layout": engine.layout}
            errors = self._on_main(lambda: self._publish(part, state, every, content))
        return errors

    @staticmethod
    def _on_main(function: Callable[[], None]) -> list[str]:
        error = ranks.from_main(_failure(function) if ranks.rank() == 0 else "")
        return [f"rank 0: {error}"] if error else []

    def _publish(self, part: Path, state: TrainState, files: dict[str, Any], content: dict[str, Any]) -> None:
        write_manifest(part, files, content)
        self.check()  # again: writing takes long enough to be taken for dead
        final = self.folder / tag_of(state.step)
        replaced = self.folder / f".{final.name}.old"
        if final.exists():  # damaged, or of a time line that was left by starting from an older one
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        part.rename(final)
        self._point(state)
        if problem := _failure(lambda: _delete_old(self.folder, self.config.keep_last)):
            _warn(f"{final} is saved, but older files are left, {problem}: the next checkpoint tries again")

    def _renew(self, state: TrainState) -> None:
        self.check()
        folder = self.folder / tag_of(state.step)
        manifest = read_manifest(folder)
        write_manifest(folder, manifest["files"], {"train_state": asdict(state), "layout": manifest["layout"]})
        self._point(state)

    def _point(self, state: TrainState) -> None:
        if state.best_step == state.step:
            write_atomically(self.folder / "best", tag_of(state.step))
        write_atomically(self.folder / "latest", tag_of(state.step))
        sync_folder(self.folder)


def _warn(text: str) -> None:
    if ranks.rank() == 0:
        print(f"{'!' * 80}\n{text}\n{'!' * 80}", file=sys.stderr, flush=True)


def _make_empty(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _failure(function: Callable[[], None]) -> str:
    """What `function` raises, in words; "" if nothing."""
    error = attempt(function)
    return f"{type(error).__name__}: {error}" if isinstance(error, Exception) else ""


def _delete_old(folder: Path, keep_last: int) -> None:
    # Those after `latest` are of a time line that was left, when an older one was started from.
    latest = pointer(folder, "latest")
    kept = {*[tag for tag in tags(folder) if tag <= latest][:keep_last], pointer(folder, "best"), latest}
    for tag in tags(folder):
        if tag not in kept and tag < latest:
            shutil.rmtree(folder / tag)
    for leftover in [*folder.glob(".step*"), *folder.glob(CONVERTED)]:  # also of what a crash cut off
        shutil.rmtree(leftover)


def _write_student_files(folder: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> dict[str, Any]:
    content = safetensors_bytes({name: weight.contiguous() for name, weight in weights.items()})
    text = json.dumps(description, indent=2) + "\n"
    return {
        STUDENT: write_file(folder / STUDENT, lambda file: file.write(content)),
        DESCRIPTION: write_file(folder / DESCRIPTION, lambda file: file.write(text.encode())),
    }
