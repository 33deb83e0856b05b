"""The run folder: what train would find there, that every rank can write to it, that it is one, and its space."""

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
"""Per trained parameter in a checkpoint: bf16 weight, fp32 weight."""
EXPORT_BYTES = 4
"""Per trained parameter in the exported student; the losses' parameters are counted, which is a little too much."""
SPARE_CHECKPOINTS = 2
"""Besides checkpoint.keep_last: the best, and the one being written."""
COMFORT = 1.5
"""Warn below this many times the space that is needed."""


def check_folder(patient: Patient) -> Iterator[Row]:
    """Look at the run folder from rank 0, and write to it from all ranks. Collective; leaves nothing behind."""
    workdir = Path(patient.run.workdir)
    is_main = ranks.rank() == 0
    if is_main:
        yield run_row(patient.run)
        yield from lock_rows(workdir)
    advice = "give a --workdir on a file system that all nodes share and that you may write to"
    written = None
    try:
        written = tempfile.NamedTemporaryFile(dir=existing(workdir), prefix=".vitkd_ds_doctor_")
    except OSError as caught:
        yield error("run folder", f"{workdir} must be writable, found {caught.strerror}", advice)
    # Folders of the same name may be each node's own: then the others do not see rank 0's file.
    of_main = ranks.from_main(written.name if written else None)
    if of_main and not Path(of_main).exists():
        found = f"{workdir} must be one folder for all ranks, found another one than rank 0's"
        yield error("run folder", found, advice)
    ranks.barrier()  # rank 0's file stays until all have looked
    if written:
        written.close()
    if is_main and patient.num_trained is not None:
        yield space_row(patient.run, patient.num_trained, patient.state_bytes)


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def run_row(run: Run) -> Row:
    """Whether train starts, continues, or refuses."""
    workdir = Path(run.workdir)
    try:
        if is_finished(run):
            return warning("run folder", f"{workdir} is finished, train would leave it alone", "give another --workdir")
        start = load.find(run.resume, workdir)
        check_settings(run, start.config if start else None)
    except (OSError, ValueError) as caught:
        return error("run folder", str(caught))
    return ok("run folder", f"{workdir}: " + (f"continues from {start.path}" if start else "a new run"))


def lock_rows(workdir: Path) -> Iterator[Row]:
    """Whether another job has the run folder."""
    try:
        holder = lock.holder_of(workdir)
    except OSError:  # writing to it shows what is wrong with the folder
        return
    if holder:
        name, silent_s, is_alive = holder
        if is_alive or (is_alive is None and silent_s < lock.STALE_S):
            yield error("run folder", f"{workdir} is in use by {name}", "wait for it, or give another --workdir")
        else:
            yield warning("run folder", f"{workdir} has the lock of {name}, which is gone", "train takes it over")


def space_row(run: Run, num_trained: int, state_bytes: int) -> Row:
    """Space for the checkpoints that are kept at a time, with so many parameters of the student and the losses, and so
    many bytes of optimizer state."""
    workdir = Path(run.workdir)
    folder = existing(Path(run.workdir))
    one = num_trained * (WEIGHT_BYTES + EXPORT_BYTES) + state_bytes
    count = run.checkpoint.keep_last + SPARE_CHECKPOINTS
    held = sum(path.stat().st_size for path in (workdir / CHECKPOINTS).rglob("*") if path.is_file())
    needed = max(0, count * one - held)
    free = shutil.disk_usage(folder).free
    found = f"{count} checkpoints of {size_text(one)}, {size_text(held)} of them written: {size_text(needed)} needed, "
    found += f"{size_text(free)} free in {folder}"
    advice = "clear the disk, lower --checkpoint.keep_last, or give another --workdir; quotas are not seen here"
    if free < needed:
        return error("space", found, advice)
    return judged(free >= COMFORT * needed, "space", found, "which leaves little room for anything else", advice)
