"""Time limit, preemption, Ctrl-C: a signal asks the run to save and to stop. Nothing is interrupted by it.

The handler only takes a note, so it may come at any moment: during an import, a collective or a checkpoint. The ranks
agree on the note with the finite check of each step (`vitkd_ds.train.loop.train_step`), so all stop after the same update
even if only one was signalled. Separate, and without torch, so that it can listen before the slow imports.
"""

import os
import signal
import time
from types import FrameType

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Slurm's warning before the time limit, preemption and `scancel`, Ctrl-C."""

URGING = (signal.SIGTERM, signal.SIGINT)
"""Those after which a launcher waits half a minute and kills; USR1 leaves the time that the job script asked for."""

_notes: dict[str, float] = {}
"""Name of each signal -> when it came first."""


def listen() -> None:
    """Take note of the signals from now on; to be called from the main thread."""
    for number in ASKING:
        signal.signal(number, _note)


def received() -> str:
    """Name of the first signal that came, "" if none did."""
    return next(iter(_notes), "")


def urged_at() -> float | None:
    """time.monotonic() of the first signal of URGING, None before."""
    return min((_notes[name] for name in map(_name, URGING) if name in _notes), default=None)


def _note(number: int, frame: FrameType | None) -> None:
    name = _name(number)
    if name not in _notes:
        # os.write and not print: the handler may run in the middle of a print.
        os.write(2, f"{name}: stopping after this step, when its checkpoint is saved\n".encode())
    elif number == signal.SIGINT:
        raise KeyboardInterrupt  # somebody sits in front of it and will not wait; published checkpoints stay whole
    _notes.setdefault(name, time.monotonic())


def _name(number: int) -> str:
    return signal.Signals(number).name
