"""Where this rank is, and an end for a rank that stays there too long.

A rank in a collective waits for ever for one that hangs, and a hung job burns its allocation to the time limit. So a
thread looks at the phase (data, forward, save, ...) every few seconds; if one lasts longer than the limit, it prints
rank, step, phase and all stacks and ends the process, and the launcher ends the others. Every rank has its own, as
the one that hangs cannot be told from those that wait for it. State of the module, since it is about the process.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from typing import Iterable, Iterator, TypeVar

from vitkd_ds.train import signals

T = TypeVar("T")

STEP_PHASES = frozenset({"data", "teacher", "forward", "backward", "agreement", "update"})
STOPPING_LIMIT_S = 15.0
"""Longest that a phase of a step may take after TERM: a launcher whose other rank died sends it, and waits 30 s. Not in
the first step of a process, which compiles."""

PEER_SIGNS = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "Connection refused", "remote process")
"""Parts of the messages with which gloo and NCCL report that another rank is gone."""


class _Place:
    phase, step, since, is_first_step = "start", 0, 0.0, True


_place = _Place()


def enter(phase: str, step: int | None = None) -> None:
    """Note that a phase begins; the clock of the limit starts anew.

    Args:
        phase: one word.
        step: updates done; None leaves it as it is.
    """
    if _place.phase == "update":
        _place.is_first_step = False
    _place.phase, _place.since = phase, time.monotonic()
    if step is not None:
        _place.step = step


def each(values: Iterable[T], phase: str) -> Iterator[T]:
    """The values, with the clock started anew for each."""
    for value in values:
        enter(phase)
        yield value


def where() -> str:
    """This rank's place, for messages."""
    return f"rank {os.environ.get('RANK', '0')}, phase {_place.phase}, after {_place.step} updates"


def watch(*, limit_s: float) -> None:
    """Start to watch this process; it ends within 1.1 times `limit_s` after a phase began to hang."""
    enter("start")
    threading.Thread(target=_watch, args=(limit_s,), name="watchdog", daemon=True).start()


def _watch(limit_s: float) -> None:
    poll_s = min(5.0, limit_s / 10)
    while True:
        # If something holds the interpreter's lock, this thread hangs too: faulthandler's own thread needs no lock.
        faulthandler.dump_traceback_later(limit_s + 2 * poll_s, exit=True)
        time.sleep(poll_s)
        waited_s = time.monotonic() - _place.since
        if waited_s > limit_s or _is_stuck_in_step():
            asked = f", {signals.received()} asked to stop" if signals.received() else ""
            text = f"{where()}: no progress for {waited_s:.0f} s (timeout_minutes: {limit_s / 60:g}{asked}): ending it"
            os.write(2, f"{text}; where its threads are:\n".encode())
            faulthandler.dump_traceback(all_threads=True)
            os.write(2, f"{text}\n".encode())
            os._exit(1)


def _is_stuck_in_step() -> bool:
    urged_at = signals.urged_at()
    if urged_at is None or _place.is_first_step or _place.phase not in STEP_PHASES:
        return False
    return time.monotonic() - max(urged_at, _place.since) > STOPPING_LIMIT_S


def report(error: BaseException) -> None:
    """Say on stderr what ended this rank: one line that names rank, phase and step, after the traceback if it helps."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        traceback.print_exception(error)
        hint = "out of memory: lower --micro_batch_size_per_gpu"
    elif isinstance(error, RuntimeError) and any(sign in text for sign in PEER_SIGNS):
        hint = "another rank ended, or cannot be reached: its own last lines, or its node's log, say why"
    else:
        traceback.print_exception(error)
        hint = "the other ranks end with it"
    print(f"{where()}: {hint}. {type(error).__name__}: {text}", file=sys.stderr, flush=True)
