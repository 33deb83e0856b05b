"""Allow one job per run folder, across the nodes that share it.

The file `lock` says who holds the folder, and its modification time is the holder's heartbeat. flock would not do: on
some network file systems it silently holds on one node only. This relies on link() and rename() being atomic. Rank 0
alone locks. It also calls `check` before it publishes anything, so that a job that was suspended and replaced stops. A
lock that somebody deletes or damages is written again by its holder's next heartbeat; a deleted folder is not.
"""

import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
STALE_S = 60.0
"""Seconds without a heartbeat after which a holder on another host is considered dead; longer than a network file
system caches attributes."""
UNKNOWN = dict.fromkeys(("token", "host", "machine", "pid", "start_time", "job", "restart", "since"), "unknown")
"""The holder by a lock that is damaged, or was left empty by a crash of its node: nobody, unless its time changes."""


class LockLost(RuntimeError):
    """Another job has this run folder, or it is gone."""


class LockFailed(OSError):
    """The lock cannot be written: the disk is full, read-only or away."""


class RunLock:
    """The lock of a run folder."""

    def __init__(self, workdir: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path, self.heartbeat_s, self.stale_s = workdir / "lock", heartbeat_s, stale_s
        self.me = _describe_this_process()
        self.released, self.writing = threading.Event(), threading.Lock()

    def acquire(self) -> None:
        """Take the lock; where only a heartbeat can tell whether its holder lives, wait for one, at most `stale_s`.

        Raises:
            ValueError: another job has it.
            LockFailed: it cannot be written; nothing is left behind.
        """
        folder, mine = self.path.parent, self.path.with_name(f".lock.{self.me['token']}")
        made = [above for above in (folder, *folder.parents) if not above.exists()]
        self.made_folder = bool(made)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                mine.write_text(json.dumps(self.me))
                while not self._try(mine):
                    pass
            finally:
                mine.unlink(missing_ok=True)
        except OSError as error:
            with suppress(OSError):  # the disk may be gone, and the first error says more
                for above in made:
                    above.rmdir()
            raise LockFailed(
                f"a run must write {str(self.path)!r} before it starts, found {error}: free space on its disk, make it "
                f"writable, or give another --workdir"
            ) from error
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _try(self, mine: Path) -> bool:
        try:
            _create(self.path, mine)
            return True
        except FileExistsError:
            holder = _read(self.path)
        if not holder:
            time.sleep(0.02)  # given back since we looked
            return False
        if self._is_alive(holder):
            raise ValueError(
                f"{self.path.parent} must be used by one job at a time, found it in use by {_name(holder)}: wait for "
                f"it, or give another --workdir (if that job is dead, its lock is taken over {self.stale_s:.0f} s "
                "after its last sign of life)"
            )
        # Of several jobs that take a dead one's place, the one that creates the claim succeeds.
        claim = self.path.with_name(f".lock.after.{holder['token']}")
        try:
            _create(claim, mine)
        except FileExistsError:
            time.sleep(self.heartbeat_s)  # another job is taking over; if it died here, its claim must not stay
            os.utime(mine)  # now by the clock of the file system, which may be another one than this machine's
            with suppress(FileNotFoundError):
                if mine.stat().st_mtime - claim.stat().st_mtime > self.stale_s:
                    claim.unlink()
            return False
        try:
            if _read(self.path).get("token") != holder["token"]:
                return False  # replaced or given back since we looked
            logger.warning("took over the lock of %s, which is gone", _name(holder))
            mine.replace(self.path)
            return True
        finally:
            claim.unlink(missing_ok=True)

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if (known := _known_to_live(holder, self.me)) is not None:
            return known
        seen, waited_until = _heartbeat(self.path), time.monotonic() + self.stale_s
        logger.info("waiting for a sign of life of %s", _name(holder))
        while time.monotonic() < waited_until:
            time.sleep(min(1.0, self.heartbeat_s))
            if _heartbeat(self.path) != seen:
                return True  # the holder lives, or another job has the lock by now
        return False

    def _beat(self) -> None:
        while not self.released.wait(self.heartbeat_s):
            try:
                if self.path.parent.is_dir():  # else its disk is away, perhaps for a moment; saving reports it
                    self.check()
                    os.utime(self.path)
            except LockLost as error:
                logger.error("%s", error)
                os._exit(1)
            except OSError:
                pass  # the file system is away for a moment; if it stays away, saving reports it

    def check(self) -> None:
        """Write the lock again if it was deleted or damaged. Raise LockLost if another job has considered this one dead
        and taken it, or the run folder is gone."""
        found = _read(self.path)
        if not found and not self.path.parent.is_dir():
            raise LockLost(
                f"{self.path.parent} must stay while a run goes on in it, found it gone: exiting, and not making it "
                "again; put it back, and the same command goes on"
            )
        if not found or found is UNKNOWN:
            with self.writing:
                found = {} if self.released.is_set() else self._write_again(is_there=bool(found))
        if found and found["token"] != self.me["token"]:
            raise LockLost(f"{_name(found)} considered this job dead and took {self.path}: exiting")

    def _write_again(self, *, is_there: bool) -> dict[str, Any]:
        """Write the lock, over a damaged one that is there, but not over that of a job that was faster; return who
        holds it, {} if it cannot be written."""
        mine = self.path.with_name(f".lock.{self.me['token']}")
        with suppress(OSError):  # a full disk, or one that is away, ends no run: the next heartbeat tries again
            try:
                mine.write_text(json.dumps(self.me))
                if is_there:
                    mine.replace(self.path)
                else:
                    _create(self.path, mine)
                logger.warning("%s was changed while this job holds it, and is written again", self.path)
            finally:
                mine.unlink(missing_ok=True)
        found = _read(self.path)
        return {} if found is UNKNOWN else found

    def release(self) -> None:
        """Give the lock back; remove the folder if `acquire` made it and nothing else is in it. A disk that is
        read-only or away by now is only warned of: why the run ends says more, and the lock is taken over."""
        with self.writing:  # or the heartbeat would take this for a deletion
            self.released.set()
        try:
            if _read(self.path).get("token") == self.me["token"]:
                self.path.unlink(missing_ok=True)
                if self.made_folder and not any(self.path.parent.iterdir()):
                    self.path.parent.rmdir()
        except OSError as error:
            logger.warning("%s cannot be given back, %s: the next job takes it over", self.path, error)


def holder_of(workdir: Path) -> tuple[str, float, bool | None] | None:
    """Who holds a run folder, seconds since the last heartbeat, and whether the holder lives (None: only a heartbeat
    can tell); None if nobody holds it. Reads only."""
    found, heartbeat = _read(workdir / "lock"), _heartbeat(workdir / "lock")
    if not found or not heartbeat:
        return None
    return _name(found), time.time() - heartbeat[1] / 1e9, _known_to_live(found, _describe_this_process())


def _known_to_live(holder: dict[str, Any], me: dict[str, Any]) -> bool | None:
    """Whether a holder lives; None if only its heartbeat can tell."""
    if holder["job"] and holder["job"] == me["job"] and holder["restart"] != me["restart"]:
        return False  # this is its requeue
    if holder["machine"] == me["machine"]:
        return _start_time(holder["pid"]) == holder["start_time"]
    return None


def _describe_this_process() -> dict[str, Any]:
    """Write down who holds the lock. `machine` is the scope of process numbers: this boot of this kernel, in this
    container; unique if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        machine = uuid.uuid4().hex
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": machine,
        "pid": os.getpid(),
        "start_time": _start_time(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID", ""),
        "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _start_time(pid: int) -> str:
    """Start time of a process in kernel ticks, which tells it from a later one of that number; "" if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if stat[0] in "ZX" else stat[19]


def _create(path: Path, source: Path) -> None:
    """Create `path` with the content of `source`; of several callers one succeeds, the others get FileExistsError."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x") as file:
            try:
                file.write(source.read_text())
                file.flush()
            except OSError:  # an empty lock would hold the folder
                path.unlink()
                raise


def _read(path: Path) -> dict[str, Any]:
    """Read the description of the lock's holder; {} if nobody holds it."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return UNKNOWN if path.is_symlink() else {}
    except (ValueError, RecursionError):
        return UNKNOWN
    is_whole = isinstance(found, dict) and all(
        type(found.get(key)) is (int if key == "pid" else str) for key in UNKNOWN
    )
    # The token becomes a part of a file's name.
    return found if is_whole and re.fullmatch(r"\w{1,64}", found["token"]) else UNKNOWN


def _heartbeat(path: Path) -> tuple[int, int] | None:
    """Inode and time of the lock, which a heartbeat changes; opening makes a network file system ask its server."""
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            return found.st_ino, found.st_mtime_ns
    except FileNotFoundError:
        return None


def _name(holder: dict[str, Any]) -> str:
    if holder is UNKNOWN:
        return "a job that its damaged lock does not name"
    job = f"Slurm job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']} since {holder['since']}"
