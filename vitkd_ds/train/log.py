"""Training logs: metrics.jsonl, TensorBoard, and the numbers of the progress line, all on rank 0."""

import json
import logging
import math
from datetime import timedelta
from pathlib import Path
from typing import Callable, Mapping

import torch
from torch import Tensor

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.engine import ranks
from vitkd_ds.train.console import Progress

logger = logging.getLogger(__name__)

VAL_TOP1 = "val_top1"
"""Key that only the lines of evaluations have."""


class MetricsLog:
    """Write a line per log step and evaluation on rank 0, and nothing on the others.

    A resumed run first drops the lines of steps that it will run again, so each step stands in the file once: those
    after `resumed_step`, and evaluations after `evaluated_step`, the last that counts.
    """

    def __init__(self, workdir: Path, *, total_steps: int, resumed_step: int, evaluated_step: int = -1) -> None:
        self.total_steps, self.is_main = total_steps, ranks.rank() == 0
        if not self.is_main:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        path = workdir / "metrics.jsonl"
        if path.exists():
            steps = {False: resumed_step, True: evaluated_step}
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= steps[VAL_TOP1 in line]]
            write_text(path, "".join(f"{line}\n" for line in lines))
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)
        self.progress = Progress(total_steps, start_step=resumed_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write a line for `step` (updates done), and show it."""
        if not self.is_main:
            return
        try:
            self.file.write(json.dumps({"step": step} | {k: _rounded(v) for k, v in values.items()}) + "\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:  # a full disk loses lines, and must not lose the run
            logger.warning("step %d could not be written to %s: %s", step, self.file.name, error)
        if VAL_TOP1 in values:
            logger.info("%s", self._line(step, values))
        else:
            self.progress.show(step, f"total {values['total']:.4g}", self._line(step, values))

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self.file, self.board, self.progress) if self.is_main else ():
            try:
                file.close()
            except OSError as error:
                logger.warning("the last lines could not be written: %s", error)

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        shown = dict(values)
        text = f"step {step}/{self.total_steps}"
        if "images_per_s" in shown:
            eta = (self.total_steps - step) * shown.pop("s_per_step")
            text += f"  {shown.pop('images_per_s'):,.0f} images/s  eta {timedelta(seconds=round(eta))}"
        return text + "".join(f"  {name} {value:.4g}" for name, value in shown.items())


class Meter:
    """Means of the loss terms over steps and ranks, and the speed without evaluations and checkpoints.

    The first step of a process is not timed, because it compiles and warms up. After a restart the first means are over
    fewer steps if the checkpoint lay between two log steps; `timed_s` and `timed_steps` count what was timed before.
    `clock` returns seconds when the device has finished its work. Where the device's `peak_tflops` is known, the speed
    is also that of its arithmetic, of `image_gflops` an image.
    """

    def __init__(
        self, global_batch_size: int, *, clock: Callable[[], float], timed_s: float = 0.0, timed_steps: int = 0,
        image_gflops: float = 0.0, peak_tflops: float | None = None,
    ) -> None:  # fmt: skip
        self.global_batch_size, self.clock = global_batch_size, clock
        self.image_gflops, self.peak_tflops = image_gflops, peak_tflops
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.started: float | None = None
        self.warmup_s: float | None = None
        self.timed_s, self.timed_steps = timed_s, timed_steps
        self.read_s, self.read_steps = timed_s, timed_steps

    def start(self) -> None:
        """Start the clock, unless it runs; to be called before each step."""
        if self.started is None:
            self.started = self.clock()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Count one step and its terms."""
        self.sums = {name: self.sums.get(name, 0) + value for name, value in terms.items()}
        self.num_summed += 1
        if self.warmup_s is None:
            now = self.clock()
            self.warmup_s, self.started = now - self.started, now
        else:
            self.timed_steps += 1

    def pause(self) -> None:
        """Stop the clock until the next step."""
        if self.started is not None:
            self.timed_s += self.clock() - self.started
        self.started = None

    def read(self) -> dict[str, float]:
        """Means over all ranks since the last reading, and the speed (none before the second step): images/s of all
        ranks, and TFLOP/s and MFU of a device. Collective."""
        means = torch.stack(list(self.sums.values())) / (self.num_summed * ranks.world_size())
        values = dict(zip(self.sums, ranks.sum_over_ranks(means).tolist()))
        self.pause()
        if self.timed_steps > self.read_steps:
            s_per_step = (self.timed_s - self.read_s) / (self.timed_steps - self.read_steps)
            values |= {"images_per_s": self.global_batch_size / s_per_step, "s_per_step": s_per_step}
            if self.peak_tflops:
                tflops = values["images_per_s"] / ranks.world_size() * self.image_gflops / 1e3
                values |= {"tflops": tflops, "mfu": tflops / self.peak_tflops}
        self.sums, self.num_summed = {}, 0
        self.read_s, self.read_steps = self.timed_s, self.timed_steps
        return values

    @property
    def images_per_s(self) -> float | None:
        """Speed over all timed steps, or of the first step if there is no other; None before it."""
        if self.timed_steps:
            return self.global_batch_size * self.timed_steps / self.timed_s
        return self.global_batch_size / self.warmup_s if self.warmup_s is not None else None


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line that was cut while it was written


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None
