"""Training logs: metrics.jsonl, TensorBoard and other trackers, and the numbers of the progress line, all on rank 0."""

import io
import json
import logging
import math
import os
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

import torch
from torch import Tensor

from vitkd_ds.checkpoint.files import write_text, write_whole
from vitkd_ds.config.metrics import EVALUATED
from vitkd_ds.config.reading import read_bytes
from vitkd_ds.config.run_folder import METRICS, PREDICTIONS
from vitkd_ds.engine import ranks
from vitkd_ds.train.console import Progress, progress_line
from vitkd_ds.train.trackers import Tracker, open_trackers

logger = logging.getLogger(__name__)

_IS_EVALUATION = EVALUATED.encode()


class MetricsLog:
    """Write a line per log step and evaluation on rank 0, and nothing on the others.

    A resumed run first drops the lines of steps that it will run again, so each step stands in the file once: those
    after `resumed_step`, and evaluations after `evaluated_step`, the last that counts. Every value also goes to the
    `trackers` that are named, which show the run's `settings`.
    """

    def __init__(
        self,
        workdir: Path,
        total_steps: int,
        resumed_step: int,
        evaluated_step: int = -1,
        trackers: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.total_steps = total_steps
        self.is_main = ranks.rank() == 0
        if not self.is_main:
            return
        self.predictions = workdir / PREDICTIONS
        path = workdir / METRICS
        if path.exists():
            steps = {False: resumed_step, True: evaluated_step}
            # As bytes: a flipped bit makes a line no text, and that line alone is lost.
            found = [line for line in read_bytes(path).split(b"\n") if line]
            if damaged := sum(_step_of(line) == math.inf for line in found):
                logger.warning("%s: damaged lines, which are dropped: %d", path, damaged)
            lines = [line for line in found if _step_of(line) <= steps[_IS_EVALUATION in line]]
            write_whole(path, lambda file: file.write(b"".join(line + b"\n" for line in lines)))
        self.file = _Appended(path)
        self.trackers: list[Tracker] = open_trackers(trackers, workdir, settings or {})
        if "tensorboard" in trackers:
            board = partial(_Board, workdir / "tensorboard", purge_step=resumed_step + 1)
            _attempt(lambda: self.trackers.insert(0, board()))
        self.progress = Progress(total_steps, start_step=resumed_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line for `step` (updates done), and show it."""
        if not self.is_main:
            return
        line = json.dumps({"step": step} | {k: _rounded(v) for k, v in values.items()})
        _attempt(lambda: self.file.add(f"{line}\n".encode()))
        for tracker in self.trackers:
            _attempt(partial(tracker.add_values, step, values))
        text = progress_line(step, self.total_steps, values)
        if EVALUATED in values:
            logger.info("%s", text)
        else:
            self.progress.show(step, f"total {values['total']:.4g}", text)

    def keep_predictions(self, step: int, predictions: Mapping[str, list[Any]]) -> None:
        """Write what both models answered in the evaluation at `step`, in place of the one before."""
        if self.is_main:
            content = json.dumps({"step": step} | predictions, separators=(",", ":"))
            _attempt(lambda: write_text(self.predictions, f"{content}\n"))

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self.file, *self.trackers, self.progress) if self.is_main else ():
            _attempt(file.close)


class _Appended:
    """A file that grows. Bytes that a full disk refuses wait, and follow with the first that it takes."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def add(self, content: bytes) -> None:
        """Write all that waits, and this. Raises OSError if some of it must wait."""
        self.waiting += content
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            found = f"found {error}: make room, {len(self.waiting)} bytes wait"
            raise OSError(f"{self.file.name} must be written, {found}") from error

    def close(self) -> None:
        """Write what waits. Raises OSError if it is lost."""
        with closing(self.file):
            self.add(b"")


class _Board(_Appended):
    """TensorBoard's event file of this start. No SummaryWriter, whose thread ends at the first failing write."""

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        # Read in the order of their names.
        super().__init__(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        self.add_event(file_version="brain.Event:2")
        self.add_event(step=purge_step, session_log={"status": "START"})

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point for each value. Raises OSError if some of it must wait."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self.add_event(step=step, summary={"value": points})

    def add_event(self, **content: Any) -> None:
        """Write a record. Raises OSError if some of it must wait."""
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import, and only rank 0 needs it
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self.add(record.getvalue())


OF_THE_MACHINE = ("images_per_s", "s_per_step", "data_wait_s", "memory_gib", "tflops", "mfu")
"""What of a line in metrics.jsonl tells of the machine, and not of what was learned."""


@dataclass
class Meter:
    """Means of the loss terms over steps and ranks, and the speed without evaluations and checkpoints.

    The first step of a process is not timed, because it compiles and warms up. After a restart the first means are over
    fewer steps if the checkpoint lay between two log steps. `clock` returns seconds when the device has finished its
    work. Where the device's `peak_tflops` is known, the speed is also that of its arithmetic, of `image_gflops` an
    image.
    """

    global_batch_size: int
    clock: Callable[[], float]
    image_gflops: float = 0.0
    peak_tflops: float | None = None
    started: float | None = None
    warmup_s: float | None = None

    def __post_init__(self) -> None:
        self.continue_from(0.0, 0)

    def continue_from(self, timed_s: float, timed_steps: int) -> None:
        """Begin a new reading after what was timed so far."""
        self.timed_s = self.read_s = timed_s
        self.timed_steps = self.read_steps = timed_steps
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.waited_s = 0.0

    def start(self) -> None:
        """Start the clock, unless it runs; to be called before each step."""
        if self.started is None:
            self.started = self.clock()

    def add(self, terms: Mapping[str, Tensor], *, waited_s: float = 0.0) -> None:
        """Count one step, its terms, and the seconds that the host waited for its micro-batches."""
        self.waited_s += waited_s
        self.sums = {name: self.sums.get(name, 0) + value for name, value in terms.items()}
        self.num_summed += 1
        if self.warmup_s is None:
            now = self.clock()
            self.warmup_s = now - self.started
            self.started = now
            self.waited_s = 0.0
        else:
            self.timed_steps += 1

    def pause(self) -> None:
        """Stop the clock until the next step."""
        if self.started is not None:
            self.timed_s += self.clock() - self.started
        self.started = None

    def read(self) -> dict[str, float]:
        """Means over all ranks since the last reading, and the speed (none before the second step): images/s of all
        ranks, seconds per step, those of them that a rank waited for data, and TFLOP/s and MFU of a device.
        Collective."""
        num_timed = self.timed_steps - self.read_steps
        terms = torch.stack(list(self.sums.values()))
        waited = terms.new_full((1,), self.waited_s / max(1, num_timed) * self.num_summed)
        means = torch.cat([terms, waited]) / (self.num_summed * ranks.world_size())
        *means, data_wait_s = ranks.sum_over_ranks(means).tolist()
        values = dict(zip(self.sums, means))
        self.pause()
        if num_timed:
            s_per_step = (self.timed_s - self.read_s) / num_timed
            values["images_per_s"] = self.global_batch_size / s_per_step
            values["s_per_step"] = s_per_step
            values["data_wait_s"] = data_wait_s
            if self.peak_tflops:
                tflops = values["images_per_s"] / ranks.world_size() * self.image_gflops / 1e3
                values["tflops"] = tflops
                values["mfu"] = tflops / self.peak_tflops
        self.continue_from(self.timed_s, self.timed_steps)
        return values

    @property
    def images_per_s(self) -> float | None:
        """Speed over all timed steps, or of the first step if there is no other; None before it."""
        if self.timed_steps:
            return self.global_batch_size * self.timed_steps / self.timed_s
        return self.global_batch_size / self.warmup_s if self.warmup_s is not None else None


def _attempt(function: Callable[[], None]) -> None:
    """Warn of a failing write: a full disk must not lose the run."""
    try:
        function()
    except OSError as error:
        logger.warning("the log: %s", error)


def _step_of(line: bytes) -> float:
    """Updates done at a line; inf for one that was cut while it was written, or damaged since."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = content.get("step") if isinstance(content, dict) else None
    return step if type(step) is int else math.inf


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None
