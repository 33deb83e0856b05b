"""Describe the process that holds a run folder's lock, and check whether it still exists."""

import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

UNKNOWN = dict.fromkeys(("token", "host", "machine", "pid", "start_time", "job", "restart", "since"), "unknown")
"""Placeholder for the holder if the lock file is damaged, or was left empty when a node crashed.

Such a holder is considered dead unless the file's modification time changes."""


def is_former_self(holder: dict[str, Any], me: dict[str, Any]) -> bool:
    """Return whether the holder `holder` is an earlier launch of this Slurm job, before the job was requeued."""
    starts = [each["restart"] for each in (holder, me) if each["job"] and each["job"] == me["job"]]
    return len(starts) == 2 and all(map(str.isdecimal, starts)) and int(starts[0]) < int(starts[1])


def is_found(holder: dict[str, Any], me: dict[str, Any]) -> bool | None:
    """Return whether the holder's process exists on this machine; None if it cannot be determined here."""
    if holder["machine"] != me["machine"]:
        return None
    if started := start_time(holder["pid"]):
        return started == holder["start_time"]
    try:
        os.kill(holder["pid"], 0)  # also reaches a process that /proc hides from other users
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return None


def describe_this_process() -> dict[str, Any]:
    """Return the content of a lock file that names this process as the holder.

    The entry `machine` combines the boot ID and the PID namespace, because process IDs are unique only within one boot
    and one namespace. The entry is random if either of them is unknown, or if /proc shows another namespace.
    """
    machine = uuid.uuid4().hex
    with suppress(OSError):
        if os.readlink("/proc/self") == str(os.getpid()):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    job = os.environ.get("SLURM_JOB_ID", "")
    # slurm/job.sh asks Slurm for this launch's restart count; SLURM_RESTART_COUNT may be inherited from another job.
    verified, _, restart = os.environ.get("VITKD_DS_START", "").partition(".")
    return {
        "token": uuid.uuid4().hex,
        "host": socket.gethostname(),
        "machine": machine,
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "job": job,
        "restart": restart if verified == job else "",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def start_time(pid: int) -> str:
    """Return a process's start time in kernel ticks; "ended" for a zombie; "" if the process is not found.

    The start time distinguishes the process from a later one with the same ID.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "ended" if stat[0] in "ZX" else stat[19]


def name_of(holder: dict[str, Any]) -> str:
    """Return the holder's name for messages."""
    if holder is UNKNOWN:
        return "an unknown job, whose lock file is damaged"
    job = f"Slurm job {holder['job']}, " if holder["job"] else ""
    return f"{job}process {holder['pid']} on {holder['host']} since {holder['since']}"
