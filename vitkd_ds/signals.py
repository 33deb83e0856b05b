"""Time limit, preemption, Ctrl-C: a signal asks the run to save and to stop. Nothing is interrupted by it.

The handler only takes a note, so it may come at any moment: during an import, a collective or a checkpoint. The ranks
agree on the note with the finite check of each step (`vitkd_ds.loop.train_step`), so all stop after the same update
even if only one was signalled. Separate, and without torch, so that it can listen before the slow imports.
"""

import os
import signal
from types import FrameType

ASKING = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Slurm's warning before the time limit, preemption and `scancel`, Ctrl-C."""

_notes: list[str] = []


def listen() -> None:
    """Take note of the signals from now on; to be called from the main thread."""
    for number in ASKING:
        signal.signal(number, _note)


def received() -> str:
    """Name of the first signal that came, "" if none did."""
    return _notes[0] if _notes else ""


def _note(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if name not in _notes:
        # os.write and not print: the handler may run in the middle of a print.
        os.write(2, f"{name}: stopping after this step, when its checkpoint is saved\n".encode())
    elif number == signal.SIGINT:
        raise KeyboardInterrupt  # somebody sits in front of it and will not wait; published checkpoints stay whole
    _notes.append(name)
