"""Time limit, preemption, Ctrl-C: a signal asks the run to save and to stop, and interrupts nothing.

The handler only sets a flag, so it is safe at any time: during an import, a collective or a checkpoint. The ranks agree
on the flag with the finite check of each step (`vitkd_ds.train.loop.train_step`), so all stop after the same update
even if only one was signalled. This file imports no torch, so that it can listen before the slow imports.
"""

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


def listen() -> None:
    """Listen to the signals from now on; to be called from the main thread."""
    for number in ASKING:
        signal.signal(number, _handle)


def received() -> str:
    """Name of the first signal that came, "" if none did."""
    return next(iter(_came), "")


def urged_at() -> float | None:
    """time.monotonic() of the first signal of URGING, None before."""
    return min((_came[name] for name in URGING if name in _came), default=None)


def _handle(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if name not in _came:
        # Not through logging: the handler may run in the middle of a message, which holds logging's lock.
        console.write_now(f"{name}: stopping after this step, when its checkpoint is saved")
    elif number == signal.SIGINT:
        raise KeyboardInterrupt  # the user presses Ctrl-C again and will not wait; published checkpoints stay whole
    _came.setdefault(name, time.monotonic())
