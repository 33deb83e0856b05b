"""Training logs of rank 0: metrics.jsonl, TensorBoard, other trackers and the progress line."""

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
    """Log of a run's metrics: one line in metrics.jsonl per log step and per evaluation. Only rank 0 writes.

    A resumed run repeats the steps after `resumed_step` and the evaluations after `evaluated_step`. Their old lines are
    dropped first, so that no step or evaluation is in the file twice. Every value also goes to the trackers named in
    `trackers`. They get the run's `settings` when they are opened.
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
            # Read bytes, so that a line which is no longer valid UTF-8 does not make the others unreadable.
            found = [line for line in read_bytes(path).split(b"\n") if line]
            if damaged := sum(_step_of(line) == math.inf for line in found):
                logger.warning("%s: dropping %d damaged line(s)", path, damaged)
            lines = [line for line in found if _step_of(line) <= steps[_IS_EVALUATION in line]]
            write_whole(path, lambda file: file.write(b"".join(line + b"\n" for line in lines)))
        self.file = _Appended(path)
        self.trackers: list[Tracker] = open_trackers(trackers, workdir, settings or {})
        if "tensorboard" in trackers:
            board = partial(_Board, workdir / "tensorboard", purge_step=resumed_step + 1)
            _attempt(lambda: self.trackers.insert(0, board()))
        self.progress = Progress(total_steps, start_step=resumed_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log values after `step` updates, and show them on the terminal."""
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
        """Write the models' predictions at `step`. They replace the predictions of the last evaluation."""
        if self.is_main:
            content = json.dumps({"step": step} | predictions, separators=(",", ":"))
            _attempt(lambda: write_text(self.predictions, f"{content}\n"))

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self.file, *self.trackers, self.progress) if self.is_main else ():
            _attempt(file.close)


class _Appended:
    """Append-only file. It buffers bytes that it cannot write, for example on a full disk, and writes them later."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("ab", buffering=0)
        self.waiting = b""

    def add(self, content: bytes) -> None:
        """Write all buffered bytes and `content`. Raise OSError if some bytes stay in the buffer."""
        self.waiting += content
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
        except OSError as error:
            remedy = f"Free disk space; {len(self.waiting)} bytes are buffered."
            raise OSError(f"cannot write {self.file.name}: {error}. {remedy}") from error

    def close(self) -> None:
        """Write the buffered bytes and close the file. Raise OSError if some bytes cannot be written and are lost."""
        with closing(self.file):
            self.add(b"")


class _Board(_Appended):
    """TensorBoard event file of this launch.

    SummaryWriter is not used, because its thread dies at the first failed write.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        # TensorBoard reads event files in the order of their names, so the name starts with the time.
        super().__init__(folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}")
        self.add_event(file_version="brain.Event:2")
        self.add_event(step=purge_step, session_log={"status": "START"})

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Write a point for each value. Raise OSError if some bytes stay in the buffer."""
        points = [{"tag": name, "simple_value": value} for name, value in values.items()]
        self.add_event(step=step, summary={"value": points})

    def add_event(self, **content: Any) -> None:
        """Write a record. Raise OSError if some bytes stay in the buffer."""
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import, and only rank 0 needs it
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **content).SerializeToString())
        self.add(record.getvalue())


OF_THE_MACHINE = ("images_per_s", "s_per_step", "data_wait_s", "memory_gib", "tflops", "mfu")
"""Keys of metrics.jsonl that describe the machine rather than the training result."""


@dataclass
class Meter:
    """Meter of the training speed, and of each loss term's mean over steps and ranks.

    Time for evaluations and checkpoints is not counted. The first step of a process is not timed, because it compiles
    and warms up. If a run resumes between two log steps, its first means cover fewer steps than later ones.

    `clock` must wait for the device and then return the time in seconds. `image_gflops` is the number of GFLOPs per
    trained image. If `peak_tflops` of the device is known, TFLOP/s and MFU (the fraction of the peak) are computed.
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
        """Start a new interval, given the total time and number of steps timed so far."""
        self.timed_s = self.read_s = timed_s
        self.timed_steps = self.read_steps = timed_steps
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.waited_s = 0.0

    def start(self) -> None:
        """Start the clock unless it is running. Call this before each step."""
        if self.started is None:
            self.started = self.clock()

    def add(self, terms: Mapping[str, Tensor], *, waited_s: float = 0.0) -> None:
        """Count one step with its loss terms and the seconds that the host waited for micro-batches."""
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
        """Return the means over all ranks since the last call, and the speed if a step has been timed. Collective.

        The speed consists of images/s over all ranks, seconds per step, and the seconds per step that a rank
        waited for data (mean over ranks). If the device's peak is known, TFLOP/s and MFU per device are included.
        """
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
        """Images per second over all timed steps.

        Before any step is timed, this is the speed of the first step, or None if the first step has not ended.
        """
        if self.timed_steps:
            return self.global_batch_size * self.timed_steps / self.timed_s
        return self.global_batch_size / self.warmup_s if self.warmup_s is not None else None


def _attempt(function: Callable[[], None]) -> None:
    """Call a function. Log an OSError as a warning, because a full disk must not end the run."""
    try:
        function()
    except OSError as error:
        logger.warning("logging failed: %s", error)


def _step_of(line: bytes) -> float:
    """Return the step in a line of metrics.jsonl, or inf if the line is truncated or damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return math.inf
    step = content.get("step") if isinstance(content, dict) else None
    return step if type(step) is int else math.inf


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None
