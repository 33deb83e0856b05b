"""One job per run folder, across the nodes that share it.

The holder's file `lock` says who it is, and its modification time is its heartbeat. No flock: on network file systems
it may hold on one node only, without saying so. What is relied on is that link() and rename() are atomic. Rank 0 alone
locks; it also asks `check` before it publishes anything, so a job that was suspended and replaced stops by itself.
"""

import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""After so long without a heartbeat a holder on another host is taken for dead; longer than a network file system
caches attributes."""


class RunLock:
    """The lock of a run folder, taken by `acquire` and given back by `release`."""

    def __init__(self, workdir: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path = workdir / "lock"
        self.heartbeat_s, self.stale_s = heartbeat_s, stale_s
        self.me = _describe_this_process()
        self.released = threading.Event()
        self.made_folder = False

    def acquire(self) -> None:
        """Take the lock, or wait until it is known that its holder is alive or dead: at most `stale_s`.

        Raises:
            ValueError: another job has it.
        """
        self.made_folder = not self.path.parent.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        mine = self.path.with_name(f".lock.{self.me['token']}")
        mine.write_text(json.dumps(self.me))
        try:
            while not self._try(mine):
                pass
        finally:
            mine.unlink(missing_ok=True)
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _try(self, mine: Path) -> bool:
        try:
            _create(self.path, mine)
            return True
        except FileExistsError:
            holder = _read(self.path)
        if holder and self._is_alive(holder):
            raise ValueError(
                f"{self.path.parent} must be used by one job at a time, found it in use by {_name(holder)}: wait for "
                f"it, or give another --workdir (if that job is dead, its lock is taken over {self.stale_s:.0f} s "
                "after its last sign of life)"
            )
        return bool(holder) and self._replace(mine, holder)

    def _replace(self, mine: Path, dead: dict[str, Any]) -> bool:
        """Take a dead job's place; of several jobs that try, the one that can make the claim does."""
        claim = self.path.with_name(f".lock.after.{dead['token']}")
        try:
            _create(claim, mine)
        except FileExistsError:
            time.sleep(self.heartbeat_s)  # another job is at it; if it died just here, its claim must not stay
            if claim.exists() and time.time() - claim.stat().st_mtime > self.stale_s:
                claim.unlink(missing_ok=True)
            return False
        try:
            if _token(self.path) != dead["token"]:
                return False  # replaced or given back since we looked
            print(f"took over the lock of {_name(dead)}, which is gone", file=sys.stderr, flush=True)
            mine.replace(self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        known = _known_to_live(holder, self.me)
        if known is not None:
            return known
        seen, waited_until = _heartbeat(self.path), time.monotonic() + self.stale_s
        print(f"waiting for a sign of life of {_name(holder)}", file=sys.stderr, flush=True)
        while time.monotonic() < waited_until:
            time.sleep(min(1.0, self.heartbeat_s))
            if _heartbeat(self.path) != seen:
                return True  # it lives, or is another's by now: either way this job cannot have it
        return False

    def _beat(self) -> None:
        while not self.released.wait(self.heartbeat_s):
            try:
                self.check()
                os.utime(self.path)
            except LockLost as error:
                os.write(2, f"{error}\n".encode())
                os._exit(1)
            except OSError:
                pass  # the file system is away for a moment; if it stays away, saving says so

    def check(self) -> None:
        """Raise LockLost if another job has taken this one for dead."""
        found = _read(self.path)
        if found and found["token"] != self.me["token"]:
            raise LockLost(f"{self.path} belongs to {_name(found)} by now, which took this job for dead: ending it")

    def release(self) -> None:
        """Give the lock back, and a folder that holds nothing else."""
        self.released.set()
        if _token(self.path) == self.me["token"]:
            self.path.unlink(missing_ok=True)
            if self.made_folder and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()


class LockLost(RuntimeError):
    """Another job has this run folder."""


def holder_of(workdir: Path) -> tuple[str, float, bool | None] | None:
    """Who has a run folder, seconds since its last sign of life, and whether it lives (None: it cannot be known at
    once); None if nobody has it. Reads only."""
    path = workdir / "lock"
    found, heartbeat = _read(path), _heartbeat(path)
    if not found or not heartbeat:
        return None
    return _name(found), time.time() - heartbeat[1] / 1e9, _known_to_live(found, _describe_this_process())


def _known_to_live(holder: dict[str, Any], me: dict[str, Any]) -> bool | None:
    """Whether a holder lives, where that can be known without waiting for its heartbeat."""
    if holder["job"] and holder["job"] == me["job"] and holder["restart"] != me["restart"]:
        return False  # this is its requeue
    if holder["machine"] == me["machine"]:
        return _start_time(holder["pid"]) == holder["start_time"]
    return None


def _describe_this_process() -> dict[str, Any]:
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": _machine(),
        "pid": os.getpid(),
        "start_time": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> str:
    """Names what process numbers mean something in: this boot of this kernel, this container. Unique if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex


def _start_time(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" if there is none. Tells it from a later one of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if stat[0] in "ZX" else stat[19]


def _create(path: Path, source: Path) -> None:
    """Make `path` with the content of `source`, at once and by one caller only; the others get FileExistsError."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x") as file:
            file.write(source.read_text())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:  # left empty by a crash of its node: nobody's, unless its time still changes
        return dict.fromkeys(("token", "host", "machine", "pid", "start_time", "job", "restart", "since"), "unknown")


def _token(path: Path) -> str:
    found = _read(path)
    return found["token"] if found else ""


def _heartbeat(path: Path) -> tuple[int, int] | None:
    """Changes with each heartbeat. Opened, since a network file system then asks its server."""
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            return found.st_ino, found.st_mtime_ns
    except FileNotFoundError:
        return None


def _name(holder: dict[str, Any]) -> str:
    job = f"Slurm job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']} since {holder['since']}"
