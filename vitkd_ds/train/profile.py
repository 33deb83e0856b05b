"""Trace a few steps with torch's profiler: host and device time for each part of a step."""

import logging
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.engine import ranks

logger = logging.getLogger(__name__)

WAIT = 5
"""Number of steps at the start that are not profiled, because they compile."""
WARMUP = 3
"""Number of steps after these whose profile is discarded, because the profiler starts slowly."""
PARTS = ("data", "teacher", "forward", "backward", "update")
"""Names under which `vitkd_ds.train.step.train_step` marks its parts."""
ROWS = 30
"""Number of operations listed in table.txt."""


def profiled(num_steps: int, workdir: Path) -> AbstractContextManager[Any]:
    """Return a context manager that yields a profiler.

    The context manager yields None on ranks other than 0, and on all ranks if `num_steps` is 0. Call the profiler's
    `step` after each update. After the first WAIT + WARMUP + num_steps updates of this launch, rank 0 writes
    trace.json.gz (for chrome://tracing or https://ui.perfetto.dev) and table.txt to RUN/profile.
    """
    if not num_steps or ranks.rank():
        return nullcontext()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    steps = schedule(wait=WAIT, warmup=WARMUP, active=num_steps, repeat=1)
    return profile(activities=activities, schedule=steps, on_trace_ready=lambda done: _write(done, workdir / "profile"))


def _write(done: profile, folder: Path) -> None:
    averages = done.key_averages()
    parts = [event for event in averages if event.key in PARTS]
    lines = [f"{'part':10}{'calls':>8}{'host ms':>12}{'device ms':>12}"]
    for event in sorted(parts, key=lambda event: PARTS.index(event.key)):
        host, device = (1e-3 * us / event.count for us in (event.cpu_time_total, event.device_time_total))
        lines.append(f"{event.key:10}{event.count:8}{host:12.3f}{device:12.3f}")
    by = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    table = "\n".join([*lines, "", averages.table(sort_by=by, row_limit=ROWS)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "table.txt", f"{table}\n")
        done.export_chrome_trace(str(folder / "trace.json.gz"))
    except (OSError, RuntimeError) as error:  # a full disk must not end the run
        logger.warning("the trace could not be written to %s: %s", folder, error)
        return
    logger.info("wrote the trace to %s and its summary to table.txt in the same folder", folder / "trace.json.gz")
