"""Faults of `benchmarks/chaos.py` in a run's surroundings: stderr, paths, environment, teacher, namespaces.

One fault comes together with a kill. Either stderr is full, closed or broken; or the run folder is a link, which is
redirected to another run; or the environment has another job's variables; or the teacher's file changes between two
starts; or a second job tries to take the lock from another process or time namespace. An AssertionError means that the
run did not react as it should, or that a file of the other run has changed.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from vitkd_ds.models.build import DEMO_TEACHER

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ("full stream", "closed stream", "broken stream", "link", "environment", "stale teacher", "namespaces")
FOREIGN = {
    "SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "7", "SLURM_PROCID": "5",
    "SLURM_GPUS_PER_TASK": "1", "VITKD_DS_START": "12.1",
}  # fmt: skip
NAMESPACES = (
    ("unshare", "--pid", "--fork"), ("unshare", "--pid", "--fork", "--mount-proc"),
    ("unshare", "--time", "--boottime", "100000"),
)  # fmt: skip
CONTEND = """
import sys
from pathlib import Path
from vitkd_ds.checkpoint.lock import RunLock
try:
    RunLock(Path(sys.argv[1])).acquire()
except ValueError as error:
    sys.exit(7 * ("is in use by" in str(error)))
"""
REFUSED = 7
GROUPS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.swappiness"),
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
)
"""For cgroups v1 and v2: the root folder, the file name of the memory limit, and that of the swap setting."""


class Trust:
    """Link to a run's folder and copy of its teacher, which faults change; and another run, which must not change."""

    def __init__(self, folder: Path, workdir: Path) -> None:
        self.workdir, self.link, self.other = workdir, folder / "link", folder / "other"
        self.teacher = folder / "teacher.safetensors"
        self.option = f"--teacher.checkpoint={self.teacher}"
        shutil.copy(DEMO_TEACHER, self.teacher)
        shutil.copy(DEMO_TEACHER.with_suffix(".json"), self.teacher.with_suffix(".json"))

    def copy_other(self, run: Path) -> None:
        """Copy a finished run; the copy is the other run, which must not change."""
        shutil.copytree(run, self.other)
        self.before = hash_of(self.other)

    @contextmanager
    def stream(self, fault: str | None, log):
        """Yield the file for a start's stderr: a full or broken stream for these faults, otherwise `log`."""
        if fault == "full stream":
            with open("/dev/full", "w") as full:
                yield full
        elif fault == "broken stream":
            reading, writing = os.pipe()
            os.close(reading)
            yield writing
            os.close(writing)
        else:
            yield log

    def place(self, fault: str | None) -> Path:
        """Return the run folder's path for the command line; with the fault "link", return that of a link to it."""
        if fault != "link":
            return self.workdir
        self.workdir.mkdir(exist_ok=True)
        self._point_to(self.workdir)
        return self.link

    def _point_to(self, folder: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(folder)

    def strike(self, fault: str | None, is_locked) -> None:
        """Cause a fault while the ranks run; `is_locked` returns whether they already hold the run folder's lock."""
        if fault == "link":
            self._point_to(self.other)
        if fault == "namespaces" and is_locked():
            for namespace in NAMESPACES:
                done = subprocess.run([*namespace, sys.executable, "-c", CONTEND, self.workdir], cwd=ROOT)
                assert done.returncode == REFUSED or not is_locked(), f"a live run's lock was taken: {namespace}"

    def check(self) -> None:
        """Assert that the other run has not changed."""
        assert hash_of(self.other) == self.before, f"{self.other} has changed"

    @contextmanager
    def changed_teacher(self):
        """Change the teacher's file for the `with` block, and restore it afterwards."""
        content = self.teacher.read_bytes()
        self.teacher.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        yield
        self.teacher.write_bytes(content)


def hash_of(folder: Path) -> str:
    """Return a hash of the names and contents of all files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(bytes(path) + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def close_stderr() -> None:
    """Close stderr. The child process calls this before it executes the rank's program."""
    os.close(2)


def end_memory(pid: int) -> bool:
    """Limit a process's memory, so that the kernel kills it at its next allocation; return whether this is possible."""
    for top, limit, swap in GROUPS:
        group = Path(top, "vitkd_ds_chaos")
        with suppress(OSError):
            group.mkdir(exist_ok=True)
            for name, text in ((swap, "0"), (limit, "1M"), ("cgroup.procs", f"{pid}")):
                (group / name).write_text(text)
            return True
    return False
