"""Stop signals (time limit, preemption, Ctrl-C): save and stop after the current step.

The handler only sets a flag, so it is safe at any time: during an import, a collective or a checkpoint. Ranks share the
flag in each step's check for finite values (`vitkd_ds.train.step.train_step`), so all stop after the same update,
even if only one rank received the signal. While the main thread waits in a collective, Python does not run the handler.
Therefore each signal's number is also written to a pipe at once, and any thread, such as the watchdog, can read it.
This module does not import torch, so it can listen before slow imports.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from vitkd_ds.train import console

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Stop signals.

In this order, they mean: Slurm's warning before the time limit; preemption or `scancel`; Ctrl-C; a closed terminal.
"""

LAUNCHER = "the launcher's end"
URGING = (*(number.name for number in ASKING if number != signal.SIGUSR1), LAUNCHER)
"""Events after which the launcher kills its ranks within half a minute.

SIGUSR1 is not among them, because the job script determines the time that remains after it.
"""
LAUNCHERS = (
    "deepspeed",
    "ds",
    "deepspeed.launcher.launch",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
)
"""Programs and Python modules that start ranks; if they are killed, their ranks receive no signal."""

_came: dict[str, float] = {}
"""Signal name to time.monotonic() of its first arrival."""
_handled: set[int] = set()
"""Signals already handled."""
_launchers: list[tuple[int, str]] = []
"""Process id and command line of each launcher among the ancestors."""
_pipe: list[int] = []
"""File descriptor for reading signal numbers; the list is empty before `listen`."""


def listen() -> None:
    """Install the signal handlers. Call this from the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _pipe[:] = [reading]
    for number in ASKING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _handle)
    _launchers[:] = _launchers_above(os.getppid())


def received() -> str:
    """Return the name of the first signal received, or "" if there was none."""
    _look()
    return next(iter(_came), "")


def urged_at() -> float | None:
    """Return time.monotonic() of the first event in URGING, or None if there was none."""
    _look()
    return min((_came[name] for name in URGING if name in _came), default=None)


def _launchers_above(pid: int) -> list[tuple[int, str]]:
    """Return the launchers from process `pid` upwards; the search ends at the first process that is not a launcher."""
    found = []
    while (command := _command_of(pid)) and {Path(word).name for word in command.split("\0")[:4]} & {*LAUNCHERS}:
        found.append((pid, command))
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def _command_of(pid: int) -> str:
    """Return the command line of a process, or "" if it has exited."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape")
    except OSError:
        return ""


def _look() -> None:
    """Record the signals that are waiting in the pipe. If a launcher has exited, record that too."""
    if any(_command_of(pid) != command for pid, command in _launchers):
        _note(LAUNCHER)
    for end in _pipe:
        try:
            numbers = os.read(end, 1024)
        except BlockingIOError:
            return
        for number in numbers:
            if number in ASKING:
                _note(signal.Signals(number).name)


def _note(name: str) -> None:
    if name not in _came:
        _came[name] = time.monotonic()
        # Do not use logging here: a signal may interrupt a log message while logging's lock is held.
        console.write_now(f"{name}: stopping after this step and its checkpoint")


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and number in _handled:
        raise KeyboardInterrupt  # a second Ctrl-C stops at once; published checkpoints stay valid
    _handled.add(number)
    _note(signal.Signals(number).name)
