"""Faults of `benchmarks/chaos.py` in what a run relies on: its streams, paths, environment, teacher and processes.

Each happens around a kill. The message stream is full, closed or broken; the run folder is a link that is repointed to
another run; variables of another job are inherited; the teacher's file changes between two starts; a second job looks
at the lock from another process or time namespace. Each raises AssertionError where the run does not notice or a file
of another run changes.
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
"""Of version 1 and 2 of control groups: their folder, and the files of a group's limit and of its use of swap."""


class Trust:
    """The surroundings of one run: a link to its folder, a copy of its teacher, and another run that must stay as it
    is."""

    def __init__(self, folder: Path, workdir: Path) -> None:
        self.workdir, self.link, self.other = workdir, folder / "link", folder / "other"
        self.teacher = folder / "teacher.safetensors"
        self.option = f"--teacher.checkpoint={self.teacher}"
        shutil.copy(DEMO_TEACHER, self.teacher)
        shutil.copy(DEMO_TEACHER.with_suffix(".json"), self.teacher.with_suffix(".json"))

    def copy_other(self, run: Path) -> None:
        """Make the other run of a finished one."""
        shutil.copytree(run, self.other)
        self.before = hash_of(self.other)

    @contextmanager
    def stream(self, fault: str | None, log):
        """The stderr of a start."""
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
        """The run folder as the command names it."""
        if fault != "link":
            return self.workdir
        self.workdir.mkdir(exist_ok=True)
        self._point_to(self.workdir)
        return self.link

    def _point_to(self, folder: Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(folder)

    def strike(self, fault: str | None, is_locked) -> None:
        """Make the fault while the ranks run; `is_locked` says whether they have the run folder yet."""
        if fault == "link":
            self._point_to(self.other)
        if fault == "namespaces" and is_locked():
            for namespace in NAMESPACES:
                done = subprocess.run([*namespace, sys.executable, "-c", CONTEND, self.workdir], cwd=ROOT)
                assert done.returncode == REFUSED or not is_locked(), f"a live run's lock was taken: {namespace}"

    def check(self) -> None:
        """Assert that no file of the other run has changed."""
        assert hash_of(self.other) == self.before, f"{self.other} was changed"

    @contextmanager
    def changed_teacher(self):
        """Another teacher under the same name, until the end of the block."""
        content = self.teacher.read_bytes()
        self.teacher.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        yield
        self.teacher.write_bytes(content)


def hash_of(folder: Path) -> str:
    """Names and bytes of all files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(bytes(path) + (path.read_bytes() if path.is_file() else b""))
    return found.hexdigest()


def close_stderr() -> None:
    """Close the stream in a child, before it becomes the rank."""
    os.close(2)


def end_memory(pid: int) -> bool:
    """Let the kernel kill a process for want of memory when it asks for more; returns whether that can be done here."""
    for top, limit, swap in GROUPS:
        group = Path(top, "vitkd_ds_chaos")
        with suppress(OSError):
            group.mkdir(exist_ok=True)
            for name, text in ((swap, "0"), (limit, "1M"), ("cgroup.procs", f"{pid}")):
                (group / name).write_text(text)
            return True
    return False
