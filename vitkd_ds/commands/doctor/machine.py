"""Each node by itself: limits, shared memory, scratch space, clock, and locks that a killed build left behind."""

import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, ok, warning
from vitkd_ds.engine import ranks

FILES_BASE, FILES_PER_RANK = 512, 16
"""Open files that a rank may need: its own, and sockets to the others."""
LEAST_SHM_GIB = 1.0
"""NCCL's buffers between the ranks of a node; containers start with 64 MiB."""
LEAST_SCRATCH_GIB = 2.0
MOST_SKEW_S = 1.0
STALE_S = 600.0
"""A lock of a build that is older is dead: no op of DeepSpeed takes so long to build."""


def check_machine(patient: Patient) -> list[Row]:
    """All of it. Collective, for the clocks."""
    rows = [*open_file_rows(ranks.world_size()), *shared_memory_rows(), *scratch_rows(), *build_lock_rows()]
    ranks.barrier()
    return rows + clock_rows(ranks.from_all(time.time()), patient.nodes)


def open_file_rows(world_size: int) -> list[Row]:
    """The limit of open files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = FILES_BASE + FILES_PER_RANK * world_size
    if soft != resource.RLIM_INFINITY and soft < least:
        found = f"open files are limited to {soft}, expected at least {least} with {world_size} ranks"
        return [warning("open files", found, f"ulimit -n {hard} before the start")]
    return [ok("open files", f"limited to {soft}")]


def shared_memory_rows(folder: str = "/dev/shm") -> list[Row]:
    """Space in shared memory."""
    if not os.path.isdir(folder):
        return [warning("shared memory", f"{folder} must exist, found none", "mount a tmpfs there")]
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < LEAST_SHM_GIB:
        found = f"{folder} has {free_gib:.2f} GiB free, expected at least {LEAST_SHM_GIB:g}"
        return [warning("shared memory", found, "start the container with --shm-size=8g, or remove old files there")]
    return [ok("shared memory", f"{folder} has {free_gib:.1f} GiB free")]


def scratch_rows() -> list[Row]:
    """Space where temporary files go."""
    folder = tempfile.gettempdir()
    free_gib = shutil.disk_usage(folder).free / 2**30
    if free_gib < LEAST_SCRATCH_GIB:
        found = f"{folder} has {free_gib:.2f} GiB free, expected at least {LEAST_SCRATCH_GIB:g}"
        return [warning("scratch", found, "set TMPDIR to a larger folder of the node's own disk, or clear it")]
    return [ok("scratch", f"{folder} has {free_gib:.1f} GiB free")]


def clock_rows(times_s: list[float], nodes: list[str]) -> list[Row]:
    """How far the clocks of the ranks are apart, from times that were read at the same moment."""
    skew_s = max(times_s) - min(times_s)
    ahead, behind = nodes[times_s.index(max(times_s))], nodes[times_s.index(min(times_s))]
    if skew_s > MOST_SKEW_S:
        found = f"the clock of {ahead} is {skew_s:.1f} s ahead of that of {behind}, expected at most {MOST_SKEW_S:g}"
        advice = "have the nodes' time service looked at: file times decide which lock is stale"
        return [warning("clocks", found, advice)]
    return [ok("clocks", f"at most {1000 * skew_s:.0f} ms apart")]


def extensions_folder() -> Path:
    """Where torch builds C++ extensions."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")


def build_lock_rows() -> list[Row]:
    """Locks of extensions whose build was killed: every later build waits on them for ever, without a word."""
    folder = extensions_folder()
    found = [path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)]
    stale = sorted(str(path) for path in found if time.time() - path.stat().st_mtime > STALE_S)
    if stale:
        text = f"a build that was killed left {', '.join(stale)}: the next build there would wait for ever"
        return [warning("build locks", text, f"rm {' '.join(stale)}")]
    return [ok("build locks", f"none that is stale in {folder}")]
