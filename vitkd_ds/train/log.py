"""What a run says while it trains: metrics.jsonl, TensorBoard and a progress line, all on rank 0."""

import json
import math
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from torch import Tensor

import vitkd_ds
from vitkd_ds.engine import ranks

VAL_TOP1 = "val_top1"
"""In the lines of evaluations alone."""


def write_atomically(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new content, never a part; flushed to the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class MetricsLog:
    """Writes lines on rank 0 and nothing on the others, so that callers need no rank check.

    A resumed run first drops the lines of steps that it will run again: each step stands in the file once.

    Args:
        workdir: the run folder.
        total_steps: for the progress line.
        resumed_step: updates already done; 0 for a new run.
        evaluated_step: that of the last evaluation that counts.
    """

    def __init__(self, workdir: Path, *, total_steps: int, resumed_step: int, evaluated_step: int = -1) -> None:
        self.total_steps = total_steps
        self.is_main = ranks.rank() == 0
        if not self.is_main:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only rank 0 needs it

        path = workdir / "metrics.jsonl"
        if path.exists():
            steps = {False: resumed_step, True: evaluated_step}
            lines = [line for line in path.read_text().splitlines() if _step_of(line) <= steps[VAL_TOP1 in line]]
            write_atomically(path, "".join(f"{line}\n" for line in lines))
        self.file = path.open("a", buffering=1)
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resumed_step + 1)

    def log(self, step: int, values: Mapping[str, float], *, show: bool = True) -> None:
        """Write one line for `step` (updates done), and show it unless told otherwise."""
        if not self.is_main:
            return
        try:
            self.file.write(json.dumps({"step": step} | {k: _rounded(v) for k, v in values.items()}) + "\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        except OSError as error:  # a full disk loses lines, and must not lose the run
            self.say(f"step {step} could not be written to {self.file.name}: {error}")
        if show:
            self.say(self._line(step, values))

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self.is_main:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and close the files."""
        for file in (self.file, self.board) if self.is_main else ():
            try:
                file.close()
            except OSError as error:
                self.say(f"the last lines could not be written: {error}")

    def _line(self, step: int, values: Mapping[str, float]) -> str:
        shown = dict(values)
        text = f"step {step}/{self.total_steps}"
        if "images_per_s" in shown:
            eta = (self.total_steps - step) * shown.pop("s_per_step")
            text += f"  {shown.pop('images_per_s'):,.0f} images/s  eta {timedelta(seconds=round(eta))}"
        return text + "".join(f"  {name} {value:.4g}" for name, value in shown.items())


class Meter:
    """Means of the loss terms over steps and ranks, and speed without evaluations and checkpoints.

    The first step of a process is not timed: it compiles and warms up. After a restart the first means are over fewer
    steps if the checkpoint lay between two log steps.

    Args:
        global_batch_size: images per step.
        clock: seconds, after the device has finished.
        timed_s, timed_steps: from before a restart.
    """

    def __init__(
        self, global_batch_size: int, *, clock: Callable[[], float], timed_s: float = 0.0, timed_steps: int = 0
    ) -> None:
        self.global_batch_size, self.clock = global_batch_size, clock
        self.sums: dict[str, Tensor] = {}
        self.num_summed = 0
        self.started: float | None = None
        self.is_warm = False
        self.warmup_s = 0.0
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
        if self.is_warm:
            self.timed_steps += 1
        else:
            self.is_warm, now = True, self.clock()
            self.warmup_s, self.started = now - self.started, now

    def pause(self) -> None:
        """Stop the clock until the next step."""
        if self.started is not None:
            self.timed_s += self.clock() - self.started
        self.started = None

    def read(self) -> dict[str, float]:
        """Means since the last reading over all ranks, and speed (none before the second step). Collective."""
        means = torch.stack(list(self.sums.values())) / (self.num_summed * ranks.world_size())
        values = dict(zip(self.sums, ranks.sum_over_ranks(means).tolist()))
        self.pause()
        if self.timed_steps > self.read_steps:
            s_per_step = (self.timed_s - self.read_s) / (self.timed_steps - self.read_steps)
            values |= {"images_per_s": self.global_batch_size / s_per_step, "s_per_step": s_per_step}
        self.sums, self.num_summed = {}, 0
        self.read_s, self.read_steps = self.timed_s, self.timed_steps
        return values

    @property
    def images_per_s(self) -> float | None:
        """Over all timed steps; over the first one if there is no other; None before it."""
        if self.timed_steps:
            return self.global_batch_size * self.timed_steps / self.timed_s
        return self.global_batch_size / self.warmup_s if self.is_warm else None


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # a line that was cut while it was written


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def versions() -> dict[str, str]:
    """Versions of the packages that decide about results."""
    from importlib.metadata import version

    packages = ("torch", "deepspeed", "timm", "ffcv", "numpy")
    return {"vitkd_ds": vitkd_ds.__version__} | {name: version(name) for name in packages}


def git_commit() -> str:
    """Commit of the checkout that this package runs from, with a mark if it was changed; "" outside a checkout."""
    import subprocess

    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically."""
    write_atomically(path, json.dumps(content, indent=2) + "\n")
