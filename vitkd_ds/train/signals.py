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
from types import FrameType

from vitkd_ds.train import console

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Slurm's warning before the time limit, preemption and `scancel`, Ctrl-C."""

URGING = ("SIGTERM", "SIGINT")
"""Signals after which a launcher waits half a minute and kills; USR1 leaves the time that the job script asked for."""

_came: dict[str, float] = {}
"""Name of each signal -> time.monotonic() of its first arrival."""
_handled: set[int] = set()
"""Signals whose handler has run."""
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
        signal.signal(number, _handle)


def received() -> str:
    """Name of the first signal that came, "" if none did."""
    _look()
    return next(iter(_came), "")


def urged_at() -> float | None:
    """time.monotonic() of the first signal of URGING, None before."""
    _look()
    return min((_came[name] for name in URGING if name in _came), default=None)


def _look() -> None:
    """Note the signals that are in the pipe."""
    for end in _pipe:
        try:
            numbers = os.read(end, 1024)
        except BlockingIOError:
            return
        for number in numbers:
            if number in ASKING:
                _note(number)


def _note(number: int) -> None:
    name = signal.Signals(number).name
    if name not in _came:
        _came[name] = time.monotonic()
        # Not through logging: a handler may run in the middle of a message, which holds logging's lock.
        console.write_now(f"{name}: stopping after this step, when its checkpoint is saved")


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGINT and number in _handled:
        raise KeyboardInterrupt  # the user presses Ctrl-C again and will not wait; published checkpoints stay whole
    _handled.add(number)
    _note(number)
