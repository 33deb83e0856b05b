"""Check the run folder: the run in it, its lock, access from all ranks, and free disk space."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vitkd_ds.checkpoint import load, lock
from vitkd_ds.checkpoint.folder import check_settings, is_finished
from vitkd_ds.commands.doctor.rows import Patient, Row, error, judged, ok, size_text, warning
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CHECKPOINTS
from vitkd_ds.engine import ranks

WEIGHT_BYTES = 2 + 4
"""Bytes per trained parameter in a checkpoint: bf16 weight and fp32 weight."""
EXPORT_BYTES = 4
"""Bytes per trained parameter in the exported student. Parameters of losses are not exported, so this is a bit high."""
SPARE_CHECKPOINTS = 2
"""Checkpoints beyond checkpoint.keep_last: the best one and the one being written."""
COMFORT = 1.5
"""A warning is shown if the free space is less than this many times the space that is still needed."""


def check_folder(patient: Patient) -> Iterator[Row]:
    """Inspect the run folder on rank 0, and write a temporary file to it from every rank. Collective."""
    workdir = Path(patient.run.workdir)
    is_main = ranks.rank() == 0
    if is_main:
        yield run_row(patient.run)
        yield from lock_rows(workdir)
    advice = "pass a --workdir on a file system that all nodes share and you can write to"
    written = None
    try:
        written = tempfile.NamedTemporaryFile(dir=existing(workdir), prefix=".vitkd_ds_doctor_")
    except OSError as caught:
        yield error("run folder", f"cannot write to {workdir}: {caught.strerror}", advice)
    # The path may be a different folder on each node. Then other nodes do not see rank 0's file.
    of_main = ranks.from_main(written.name if written else None)
    if of_main and not Path(of_main).exists():
        found = f"{workdir} is not the same folder as on rank 0"
        yield error("run folder", found, advice)
    ranks.barrier()  # rank 0 keeps its file until all ranks have checked
    if written:
        written.close()
    if is_main and patient.num_trained is not None:
        yield space_row(patient.run, patient.num_trained, patient.state_bytes)


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def run_row(run: Run) -> Row:
    """Report whether train would start, resume or reject the run."""
    workdir = Path(run.workdir)
    try:
        if is_finished(run):
            return warning("run folder", f"{workdir} is finished; train would do nothing", "pass another --workdir")
        start = load.find(run.resume, workdir)
        check_settings(run, start.config if start else None)
    except (OSError, ValueError) as caught:
        return error("run folder", str(caught))
    return ok("run folder", f"{workdir}: " + (f"resumes from {start.path}" if start else "a new run"))


def lock_rows(workdir: Path) -> Iterator[Row]:
    """Yield an error or a warning if another job has locked the run folder."""
    try:
        holder = lock.holder_of(workdir)
    except OSError:  # the write check reports the cause
        return
    if holder:
        name, silent_s, is_alive = holder
        if is_alive or (is_alive is None and silent_s < lock.STALE_S):
            yield error("run folder", f"{workdir} is in use by {name}", "wait for it, or pass another --workdir")
        else:
            found = f"{workdir} is locked by {name}, which has exited"
            yield warning("run folder", found, "nothing to do: train takes over the lock")


def space_row(run: Run, num_trained: int, state_bytes: int) -> Row:
    """Check that the disk has space for all checkpoints that exist at the same time.

    Args:
        run: the run.
        num_trained: number of parameters of the student and the losses.
        state_bytes: bytes of the optimizer state and the moving average.
    """
    workdir = Path(run.workdir)
    folder = existing(Path(run.workdir))
    one = num_trained * (WEIGHT_BYTES + EXPORT_BYTES) + state_bytes
    count = run.checkpoint.keep_last + SPARE_CHECKPOINTS
    held = sum(path.stat().st_size for path in (workdir / CHECKPOINTS).rglob("*") if path.is_file())
    needed = max(0, count * one - held)
    free = shutil.disk_usage(folder).free
    found = f"{count} checkpoints of {size_text(one)} need {size_text(needed)} beyond the {size_text(held)} written"
    found += f"; {size_text(free)} are free in {folder}"
    advice = "free disk space, lower --checkpoint.keep_last, or pass another --workdir (quotas are not checked)"
    if free < needed:
        return error("space", found, advice)
    return judged(free >= COMFORT * needed, "space", found, "which leaves little room for other files", advice)
