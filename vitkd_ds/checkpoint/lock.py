"""Allow one job per run folder, across the nodes that share it.

The file `lock` says who holds the folder, and its modification time is the holder's heartbeat. Only silence proves that
a holder is dead: its process number may be hidden, or belong to another container or a copy of this machine. A number
that is not found shortens the wait. flock would not do: on some network file systems it silently holds on one node
only. This relies on exclusive creation and on rename() being atomic. Only rank 0 locks. It calls `check` before it
publishes anything, so that a job that was suspended and replaced stops. The next heartbeat restores a lock that
somebody deleted or damaged. A deleted or replaced folder ends the run.
"""

import json
import logging
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.checkpoint.holder import UNKNOWN, describe_this_process, is_former_self, is_found, name_of

logger = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
MISSED_BEATS = 3
"""Heartbeats that a holder misses until it is considered dead, if its process is not found on this machine."""
STALE_S = 60.0
"""Seconds without a heartbeat after which any other holder is considered dead; longer than a network file
system caches attributes."""


class LockLost(RuntimeError):
    """Another job has this run folder, or it is gone."""


class LockFailed(OSError):
    """The lock cannot be written: the disk is full, read-only or away."""


class RunLock:
    """The lock of a run folder."""

    def __init__(self, workdir: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path = workdir / "lock"
        self.heartbeat_s = heartbeat_s
        self.stale_s = stale_s
        self.me = describe_this_process()
        self.place: tuple[int, int] | None = None
        self.released = threading.Event()
        self.writing = threading.Lock()

    def acquire(self) -> None:
        """Take the lock; where only a heartbeat can tell whether its holder lives, wait for one, at most `stale_s`.

        Raises:
            ValueError: another job has it.
            LockFailed: it cannot be written; no new run folder is left behind.
        """
        folder = self.path.parent
        self.made_folder = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.place = _place_of(folder)
            while not self._try():
                pass
        except OSError as error:
            with suppress(OSError):  # the disk may be gone, and the first error says more
                if self.made_folder:
                    folder.rmdir()
            raise LockFailed(
                f"a run must write {str(self.path)!r} before it starts, found {error}: free space on its disk, make it "
                f"writable, or give another --workdir"
            ) from error
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _try(self) -> bool:
        try:
            _create(self.path, self.me)
            return True
        except FileExistsError:
            holder = _read(self.path)
        if not holder:
            time.sleep(0.02)  # given back since we looked
            return False
        if self._is_alive(holder):
            raise ValueError(
                f"{self.path.parent} must be used by one job at a time, found it in use by {name_of(holder)}: wait for "
                f"it, or give another --workdir (if that job is dead, its lock is taken over {self.stale_s:.0f} s "
                "after its last sign of life)"
            )
        # Of several jobs that take a dead one's place, the one that creates the claim succeeds.
        claim = self.path.with_name(f".lock.after.{holder['token']}")
        try:
            _create(claim, self.me)
        except FileExistsError:  # another job is taking over; if it died here, its claim must not stay
            if not self._changes(claim, self.stale_s):
                claim.unlink(missing_ok=True)
            return False
        try:
            if _read(self.path).get("token") != holder["token"]:
                return False  # replaced or given back since we looked
            logger.warning("took over the lock of %s, which is gone", name_of(holder))
            write_text(self.path, json.dumps(self.me))
            return True
        finally:
            claim.unlink(missing_ok=True)

    def check_is_seen(self, token: str) -> None:
        """Raise ValueError unless this rank finds the lock of rank 0, whose token this is, in its run folder."""
        waited_until = time.monotonic() + self.stale_s  # a network file system may show a new file late
        while _read(self.path).get("token") != token:
            if time.monotonic() > waited_until:
                raise ValueError(
                    f"{self.path} must be the lock that rank 0 wrote, found another or none on {self.me['host']}. Use "
                    "a --workdir on a disk that all nodes share."
                )
            time.sleep(min(1.0, self.heartbeat_s))

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if is_former_self(holder, self.me):
            return False
        is_there = is_found(holder, self.me)
        if is_there:
            return True
        logger.info("waiting for a sign of life of %s", name_of(holder))
        # A change means that the holder lives, or that another job has the lock by now.
        wait_s = self.stale_s if is_there is None else min(self.stale_s, MISSED_BEATS * self.heartbeat_s)
        return self._changes(self.path, wait_s)

    def _changes(self, path: Path, wait_s: float) -> bool:
        """Whether a file gets a heartbeat, or is replaced or deleted, within `wait_s`; return at once when it does."""
        seen = _heartbeat(path)
        waited_until = time.monotonic() + wait_s
        while time.monotonic() < waited_until:
            time.sleep(min(1.0, self.heartbeat_s))
            if _heartbeat(path) != seen:
                return True
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
        """Restore the lock if it was deleted or damaged. Raise LockLost if another job has considered this one dead and
        taken it, or if the run folder is gone or another one."""
        place = _place_of(self.path.parent)
        if place is None or (self.place and place != self.place):
            found = "another folder there" if place else "it gone"
            raise LockLost(
                f"{self.path.parent} must stay while a run goes on in it, found {found}. This run ends. Put the folder "
                "back, and rerun the same command to resume."
            )
        found = _read(self.path)
        if not found or found is UNKNOWN:
            with self.writing:
                found = {} if self.released.is_set() else self._restore(is_there=bool(found))
        if found and found["token"] != self.me["token"]:
            raise LockLost(f"{name_of(found)} considered this job dead and took {self.path}: exiting")

    def _restore(self, *, is_there: bool) -> dict[str, Any]:
        """Replace this job's damaged lock, or create a deleted one unless another job has; return the holder, {} if the
        disk is full or away: the next heartbeat tries again."""
        with suppress(OSError):
            if is_there:
                write_text(self.path, json.dumps(self.me))
            else:
                _create(self.path, self.me)
            logger.warning("%s was changed while this job holds it, and is written again", self.path)
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
    """Who holds a run folder, seconds since the last heartbeat, and whether its process is found (None: only a
    heartbeat can tell); None if nobody holds it. Reads only."""
    found = _read(workdir / "lock")
    heartbeat = _heartbeat(workdir / "lock")
    if not found or not heartbeat:
        return None
    me = describe_this_process()
    return name_of(found), time.time() - heartbeat[1] / 1e9, not is_former_self(found, me) and is_found(found, me)


def _place_of(folder: Path) -> tuple[int, int] | None:
    """Device and inode of a folder, None if it is gone."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _create(path: Path, holder: dict[str, Any]) -> None:
    """Create a lock or claim; of several callers one succeeds, the others get FileExistsError."""
    with path.open("x") as file:
        try:
            file.write(json.dumps(holder))
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
    kinds = dict.fromkeys(UNKNOWN, str) | {"pid": int}
    is_whole = isinstance(found, dict) and all(type(found.get(key)) is kind for key, kind in kinds.items())
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
