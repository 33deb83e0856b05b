"""Lock of a run folder: one job at a time, across all nodes that share the folder.

The file `lock` describes the process that holds the lock: the holder. Every few seconds, the holder updates the file's
modification time; this is its heartbeat. Only a missing heartbeat proves that the holder is dead. A process ID proves
nothing, because it may be hidden, or belong to another container or a copy of this machine. If the holder was on this
machine and its process is not found, the wait for a heartbeat is shorter. The lock relies on exclusive creation and
atomic rename(). flock is not an option, because on some network file systems it silently works on one node only.

Only rank 0 takes the lock. It calls `check` before it publishes anything. So if another job takes the lock of a
suspended job, the suspended job stops when it resumes. If the lock file is deleted or damaged, the next heartbeat
restores it. If the run folder is deleted or replaced, the run ends.
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
"""Missed heartbeats after which a holder is considered dead if its process is not found on this machine."""
STALE_S = 60.0
"""Seconds without a heartbeat after which any other holder is considered dead.

Network file systems cache modification times for a shorter time than this."""


class LockLost(RuntimeError):
    """Raised if the lock is lost: another job took over the run folder, or the folder was removed or replaced."""


class LockFailed(OSError):
    """Raised if the lock cannot be written: the disk is full, read-only or unavailable."""


class RunLock:
    """Lock of a run folder."""

    def __init__(self, workdir: Path, *, heartbeat_s: float = HEARTBEAT_S, stale_s: float = STALE_S) -> None:
        self.path = workdir / "lock"
        self.heartbeat_s = heartbeat_s
        self.stale_s = stale_s
        self.me = describe_this_process()
        self.place: tuple[int, int] | None = None
        self.released = threading.Event()
        self.writing = threading.Lock()

    def acquire(self) -> None:
        """Take the lock, and create the folder if needed.

        If only a heartbeat can show whether the current holder is alive, wait up to `stale_s` for one.

        Raises:
            ValueError: another job holds the lock.
            LockFailed: the lock cannot be written. If this call has created the folder, the folder is removed.
        """
        folder = self.path.parent
        self.made_folder = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.place = _place_of(folder)
            while not self._try():
                pass
        except OSError as error:
            with suppress(OSError):  # the disk may be unavailable, and the first error is more informative
                if self.made_folder:
                    folder.rmdir()
            raise LockFailed(
                f"cannot write {str(self.path)!r}: {error}. Free disk space, make the folder writable, or pass another "
                "--workdir."
            ) from error
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def _try(self) -> bool:
        try:
            _create(self.path, self.me)
            return True
        except FileExistsError:
            holder = _read(self.path)
        if not holder:
            time.sleep(0.02)  # released in the meantime
            return False
        if self._is_alive(holder):
            raise ValueError(
                f"{self.path.parent} is in use by {name_of(holder)}. Wait for that job, or pass another --workdir."
            )
        # If several jobs try to take over from a dead job, only the one that creates the claim succeeds.
        claim = self.path.with_name(f".lock.after.{holder['token']}")
        try:
            _create(claim, self.me)
        except FileExistsError:  # another job is taking over; remove its claim if that job has died
            if not self._changes(claim, self.stale_s):
                claim.unlink(missing_ok=True)
            return False
        try:
            if _read(self.path).get("token") != holder["token"]:
                return False  # replaced or released in the meantime
            logger.warning("took over the lock of %s, which is no longer running", name_of(holder))
            write_text(self.path, json.dumps(self.me))
            return True
        finally:
            claim.unlink(missing_ok=True)

    def check_is_seen(self, token: str) -> None:
        """Wait until this rank sees rank 0's lock, which has this token. Raise ValueError after `stale_s` seconds."""
        waited_until = time.monotonic() + self.stale_s  # on network file systems, new files may appear late
        while _read(self.path).get("token") != token:
            if time.monotonic() > waited_until:
                raise ValueError(
                    f"{self.path} on {self.me['host']} is missing or is not rank 0's lock. Pass a --workdir on a disk "
                    "that all nodes share."
                )
            time.sleep(min(1.0, self.heartbeat_s))

    def _is_alive(self, holder: dict[str, Any]) -> bool:
        if is_former_self(holder, self.me):
            return False
        is_there = is_found(holder, self.me)
        if is_there:
            return True
        logger.info("waiting for a heartbeat of %s", name_of(holder))
        # A change means that the holder is alive, or that another job has taken the lock.
        wait_s = self.stale_s if is_there is None else min(self.stale_s, MISSED_BEATS * self.heartbeat_s)
        return self._changes(self.path, wait_s)

    def _changes(self, path: Path, wait_s: float) -> bool:
        """Return True as soon as a file is touched, replaced or deleted; False if nothing happens within `wait_s`."""
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
                if self.path.parent.is_dir():  # otherwise the disk is unavailable, perhaps briefly; saving reports it
                    self.check()
                    os.utime(self.path)
            except LockLost as error:
                logger.error("%s", error)
                os._exit(1)
            except OSError:
                pass  # the disk is unavailable, perhaps briefly; saving reports it

    def check(self) -> None:
        """Check that this job still holds the lock. Restore the lock file if it was deleted or damaged.

        Raises:
            LockLost: another job considered this one dead and took the lock, or the folder was removed or replaced.
        """
        place = _place_of(self.path.parent)
        if place is None or (self.place and place != self.place):
            event = "replaced by another folder" if place else "removed"
            raise LockLost(
                f"{self.path.parent} was {event} during the run, so the run ends. Restore the folder, and rerun the "
                "same command to resume."
            )
        found = _read(self.path)
        if not found or found is UNKNOWN:
            with self.writing:
                found = {} if self.released.is_set() else self._restore(is_there=bool(found))
        if found and found["token"] != self.me["token"]:
            raise LockLost(f"{name_of(found)} considered this job dead and took {self.path}, so this job ends")

    def _restore(self, *, is_there: bool) -> dict[str, Any]:
        """Restore this job's lock: replace a damaged file, or create a deleted one unless another job has created it.

        Return the holder that the file then names. Return {} if the disk is full or unavailable; the next heartbeat
        retries.
        """
        with suppress(OSError):
            if is_there:
                write_text(self.path, json.dumps(self.me))
            else:
                _create(self.path, self.me)
            logger.warning("restored %s, which was deleted or damaged while this job held it", self.path)
        found = _read(self.path)
        return {} if found is UNKNOWN else found

    def release(self) -> None:
        """Release the lock, and remove the folder if `acquire` created it and it is empty.

        If the disk is read-only or unavailable, only log a warning, because the next job can take over the lock.
        """
        with self.writing:  # otherwise, the heartbeat would restore the lock
            self.released.set()
        try:
            if _read(self.path).get("token") == self.me["token"]:
                self.path.unlink(missing_ok=True)
                if self.made_folder and not any(self.path.parent.iterdir()):
                    self.path.parent.rmdir()
        except OSError as error:
            logger.warning("cannot remove %s: %s; the next job will take over the lock", self.path, error)


def holder_of(workdir: Path) -> tuple[str, float, bool | None] | None:
    """Describe the holder of a run folder's lock; return None if nobody holds it. Nothing is written.

    Return the holder's name, the seconds since its last heartbeat, and whether its process exists. The third value is
    None if only a heartbeat can tell, and False for an earlier launch of this Slurm job.
    """
    found = _read(workdir / "lock")
    heartbeat = _heartbeat(workdir / "lock")
    if not found or not heartbeat:
        return None
    me = describe_this_process()
    return name_of(found), time.time() - heartbeat[1] / 1e9, not is_former_self(found, me) and is_found(found, me)


def _place_of(folder: Path) -> tuple[int, int] | None:
    """Return the device and inode of a folder, or None if it does not exist."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _create(path: Path, holder: dict[str, Any]) -> None:
    """Create a lock or claim file. If several processes try, one succeeds and the others get FileExistsError."""
    with path.open("x") as file:
        try:
            file.write(json.dumps(holder))
            file.flush()
        except OSError:  # an empty lock would block the folder
            path.unlink()
            raise


def _read(path: Path) -> dict[str, Any]:
    """Return the holder that a lock file describes; {} if there is no file, UNKNOWN if it is damaged."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return UNKNOWN if path.is_symlink() else {}
    except (ValueError, RecursionError):
        return UNKNOWN
    kinds = dict.fromkeys(UNKNOWN, str) | {"pid": int}
    is_whole = isinstance(found, dict) and all(type(found.get(key)) is kind for key, kind in kinds.items())
    # The token becomes part of a file name.
    return found if is_whole and re.fullmatch(r"\w{1,64}", found["token"]) else UNKNOWN


def _heartbeat(path: Path) -> tuple[int, int] | None:
    """Return the inode and modification time of a file, or None if it is missing.

    Opening the file makes a network file system refresh its cached attributes.
    """
    try:
        with path.open() as file:
            found = os.fstat(file.fileno())
            return found.st_ino, found.st_mtime_ns
    except FileNotFoundError:
        return None
