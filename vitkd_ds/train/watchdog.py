"""Kill a rank that makes no progress, after dumping its stacks.

A rank in a collective waits for ever for one that hangs, and a hung job burns its allocation to the time limit. So a
thread looks every few seconds how long the current phase (start, build, step, save, ...) has lasted. Past the limit it
prints rank, step, phase and all stacks and ends the process; the launcher then ends the others. Every rank has its own
watchdog, because a rank that hangs cannot be told from those that wait for it.
"""

import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from typing import Callable, Iterable, Iterator, TypeVar

from vitkd_ds.checkpoint.lock import LockFailed, LockLost
from vitkd_ds.config.reading import Unreadable
from vitkd_ds.train import console, signals

T = TypeVar("T")
logger = logging.getLogger(__name__)

STOPPING_LIMIT_S = 15.0
"""Longest that a micro-batch may take after TERM, in seconds: a launcher whose other rank died sends TERM, and kills
30 s later. The first step of a process is exempt, as it compiles."""

EARLY = ("start", "build", "load", "teacher check", "calibration")
"""Phases in which nothing is trained that a stop could lose."""
EARLY_LIMIT_S = 10.0
"""Longest that these may last after TERM, or after `watch`, in seconds; till then the ranks agree to stop. It comes to
all ranks where another one refused what it was given, and then 0 leaves the launcher that one's exit code."""

PEER_SIGNS = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "Connection refused", "remote process")
"""Parts of the messages with which gloo and NCCL report that another rank is gone."""
SAY_ALL = (LockFailed, LockLost, Unreadable)
"""Errors whose sentence needs no traceback."""


class _Place:
    phase = "start"
    step = 0
    since = 0.0
    num_steps = 0
    leave: Callable[[], None] = staticmethod(lambda: None)


_place = _Place()


def enter(phase: str, step: int | None = None) -> None:
    """Note that a phase, or another micro-batch of a "step", begins; the clock of the limit starts anew. `step` is the
    number of updates done, None leaves it as it is."""
    _place.num_steps += phase == "step" and (_place.phase, _place.step) != ("step", step)
    _place.phase = phase
    _place.since = time.monotonic()
    if step is not None:
        _place.step = step


def leave_with(function: Callable[[], None]) -> None:
    """Call `function`, such as the release of a lock, before a stop in one of the phases of EARLY."""
    _place.leave = function


def each(values: Iterable[T], phase: str) -> Iterator[T]:
    """Yield the values; the clock starts anew with each."""
    for value in values:
        enter(phase)
        yield value


def where() -> str:
    """Rank, phase and step of this process, for messages."""
    return f"rank {os.environ.get('RANK', '0')}, phase {_place.phase}, after {_place.step} updates"


def watch(*, limit_s: float) -> None:
    """Start to watch this process: it is killed within 1.1 times `limit_s` after a phase began to hang, and ends with 0
    soon after TERM in one of the phases of EARLY."""
    enter("start")
    threading.Thread(target=_watch, args=(limit_s,), name="watchdog", daemon=True).start()


def _watch(limit_s: float) -> None:
    poll_s = min(1.0, limit_s / 10)
    began = time.monotonic()
    while True:
        # If something holds the interpreter's lock, this thread hangs too; faulthandler's own thread needs no lock.
        faulthandler.dump_traceback_later(limit_s + 2 * poll_s, exit=True)
        time.sleep(poll_s)
        waited_s = time.monotonic() - _place.since
        urged_at = signals.urged_at()
        # Whoever waits for a rank that has gone in a collective, in C++, leaves by this thread alone.
        if urged_at is not None and _place.phase in EARLY and time.monotonic() - max(urged_at, began) > EARLY_LIMIT_S:
            console.write_now(f"{where()}: {signals.received()} asked to stop, and nothing is trained yet: ending it")
            _place.leave()
            os._exit(0)
        is_urged = urged_at is not None and _place.phase == "step" and _place.num_steps >= 2
        if waited_s > limit_s or (is_urged and time.monotonic() - max(urged_at, _place.since) > STOPPING_LIMIT_S):
            asked = f", {signals.received()} asked to stop" if signals.received() else ""
            limit = f"timeout_minutes: {limit_s / 60:g}{asked}"
            text = f"{where()}: no progress for {waited_s:.0f} s in {_function()} ({limit}): ending it"
            console.write_now(f"{text}; where its threads are:")
            faulthandler.dump_traceback(all_threads=True)
            console.write_now(text)
            os._exit(1)


def _function() -> str:
    """The function that the main thread is in: of this package, or the innermost where none of it runs."""
    innermost = frame = sys._current_frames()[threading.main_thread().ident]
    while frame and not frame.f_globals.get("__name__", "").startswith("vitkd_ds"):
        frame = frame.f_back
    frame = frame or innermost
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}, line {frame.f_lineno}"


def report(error: BaseException) -> None:
    """Log what ended this rank: one line that names rank, phase and step, after the traceback where that helps."""
    text = " ".join(str(error).split())[:500]
    hint = "the other ranks end with it"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "out of memory: lower --micro_batch_size_per_gpu"
    elif isinstance(error, RuntimeError) and any(sign in text for sign in PEER_SIGNS):
        hint = "another rank ended, or cannot be reached: its own last lines, or its node's log, say why"
    if not hint.startswith("another") and not isinstance(error, SAY_ALL):
        logger.error("%s", "".join(traceback.format_exception(error)).rstrip())
    logger.error("%s: %s. %s: %s", where(), hint, type(error).__name__, text)
