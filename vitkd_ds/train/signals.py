"""Time limit, preemption, Ctrl-C: a signal asks the run to save and to stop, and interrupts nothing.

The handler only sets a flag, so it is safe at any time: during an import, a collective or a checkpoint. The ranks agree
on the flag with the finite check of each step (`vitkd_ds.train.step.train_step`), so all stop after the same update
even if only one was signalled. While the main thread waits in a collective, Python calls no handler; so the number of
each signal also goes into a pipe at once, which whoever asks reads, such as the watchdog's thread. This file imports no
torch, so that it can listen before the slow imports.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType

from vitkd_ds.train import console

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Slurm's warning before the time limit, preemption and `scancel`, Ctrl-C, a terminal that is closed."""

LAUNCHER = "the launcher's end"
URGING = (*(number.name for number in ASKING if number != signal.SIGUSR1), LAUNCHER)
"""Signals after which a launcher waits half a minute and kills; USR1 leaves the time that the job script asked for."""
LAUNCHERS = (
    "deepspeed",
    "ds",
    "deepspeed.launcher.launch",
    "torchrun",
    "torch.distributed.run",
    "torch.distributed.launch",
)
"""Programs and modules of Python that start ranks and, if they are killed, leave them without a signal."""

_came: dict[str, float] = {}
"""Name of each signal -> time.monotonic() of its first arrival."""
_handled: set[int] = set()
"""Signals whose handler has run."""
_launchers: list[tuple[int, str]] = []
"""Process and command of each launcher above this process."""
_pipe: list[int] = []
"""The end from which the numbers of signals are read; empty before `listen`."""


def listen() -> None:
    """Listen to the signals from now on; to be called from the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    _pipe[:] = [reading]
    for number in ASKING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup has set
            signal.signal(number, _handle)
    _launchers[:] = _launchers_above(os.getppid())


def received() -> str:
    """Name of the first signal that came, "" if none did."""
    _look()
    return next(iter(_came), "")


def urged_at() -> float | None:
    """time.monotonic() of the first signal of URGING, None before."""
    _look()
    return min((_came[name] for name in URGING if name in _came), default=None)


def _launchers_above(pid: int) -> list[tuple[int, str]]:
    """The launchers among the ancestors of a process, from its parent on without a gap."""
    found = []
    while (command := _command_of(pid)) and {Path(word).name for word in command.split("\0")[:4]} & {*LAUNCHERS}:
        found.append((pid, command))
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def _command_of(pid: int) -> str:
    """Command line of a process, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape")
    except OSError:
        return ""


def _look() -> None:
    """Note the signals that are in the pipe, and a launcher that has ended."""
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
        # Not through logging: a handler may run in the middle of a message, which holds logging's lock.
        console.write_now(f"{name}: stopping after this step, when its checkpoint is saved")


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and number in _handled:
        raise KeyboardInterrupt  # the user presses Ctrl-C again and will not wait; published checkpoints stay whole
    _handled.add(number)
    _note(signal.Signals(number).name)
