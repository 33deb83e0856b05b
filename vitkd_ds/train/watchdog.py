"""Kill a rank that makes no progress, after dumping its stacks.

If a rank hangs, the other ranks wait for it in a collective forever, and the job wastes its allocation until the time
limit. Therefore a thread regularly checks how long the current phase (start, build, step, save, ...) has lasted. If the
time exceeds the limit, the thread prints the rank, step, phase and all stacks, and kills the process. The launcher then
ends the other ranks. Every rank has its own watchdog, because a hung rank looks the same as the ranks that wait for it.
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
"""Time limit for one micro-batch after SIGTERM, in seconds.

When a rank dies, the launcher sends SIGTERM to the other ranks and kills them 30 s later. The first step of a process
is exempt because it compiles.
"""

EARLY = ("start", "build", "load", "compile", "teacher check", "calibration")
"""Phases before training. Stopping in one of them loses no work."""
EARLY_LIMIT_S = 10.0
"""Time limit for a phase in EARLY, in seconds, counted from SIGTERM or the call of `watch`, whichever is later.

The ranks may agree to stop before this limit. If one rank rejects its input, the launcher sends SIGTERM to the other
ranks. They exit with code 0, so that the launcher reports the exit code of the rank that rejected its input.
"""

PEER_SIGNS = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "Connection refused", "remote process")
"""Substrings that, in an error message of gloo or NCCL, mean that another rank has exited."""
SAY_ALL = (LockFailed, LockLost, Unreadable)
"""Errors whose messages are clear without a traceback."""


class _Place:
    phase = "start"
    step = 0
    since = 0.0
    num_steps = 0
    leave: Callable[[], None] = staticmethod(lambda: None)


_place = _Place()


def enter(phase: str, step: int | None = None) -> None:
    """Record the start of a phase, or of the next micro-batch in the phase "step", and restart the clock.

    Args:
        step: number of completed updates; None keeps the previous value.
    """
    _place.num_steps += phase == "step" and (_place.phase, _place.step) != ("step", step)
    _place.phase = phase
    _place.since = time.monotonic()
    if step is not None:
        _place.step = step


def leave_with(function: Callable[[], None]) -> None:
    """Register a function that the watchdog calls before it exits in an early phase, for example to release a lock."""
    _place.leave = function


def each(values: Iterable[T], phase: str) -> Iterator[T]:
    """Yield the values, and restart the phase's clock before each of them."""
    for value in values:
        enter(phase)
        yield value


def where() -> str:
    """Return this process's rank, phase and step, for messages."""
    return f"rank {os.environ.get('RANK', '0')}, phase {_place.phase}, after {_place.step} updates"


def watch(*, limit_s: float) -> None:
    """Start the watchdog thread, which kills this process at most 1.1 x `limit_s` seconds after progress stops.

    In any of the phases in EARLY, the thread ends the process with exit code 0 about EARLY_LIMIT_S seconds after
    SIGTERM.
    """
    enter("start")
    threading.Thread(target=_watch, args=(limit_s,), name="watchdog", daemon=True).start()


def _watch(limit_s: float) -> None:
    poll_s = min(1.0, limit_s / 10)
    began = time.monotonic()
    while True:
        # If another thread never releases the GIL, this thread hangs too. faulthandler's timer thread needs no GIL.
        faulthandler.dump_traceback_later(limit_s + 2 * poll_s, exit=True)
        time.sleep(poll_s)
        waited_s = time.monotonic() - _place.since
        urged_at = signals.urged_at()
        # If the main thread waits in a C++ collective for a rank that has exited, only this thread can end the process.
        if urged_at is not None and _place.phase in EARLY and time.monotonic() - max(urged_at, began) > EARLY_LIMIT_S:
            console.write_now(f"{where()}: {signals.received()} asked to stop before training started: exiting")
            _place.leave()
            os._exit(0)
        is_urged = urged_at is not None and _place.phase == "step" and _place.num_steps >= 2
        if waited_s > limit_s or (is_urged and time.monotonic() - max(urged_at, _place.since) > STOPPING_LIMIT_S):
            asked = f", {signals.received()} asked to stop" if signals.received() else ""
            limit = f"timeout_minutes: {limit_s / 60:g}{asked}"
            text = f"{where()}: no progress for {waited_s:.0f} s in {_function()} ({limit}): exiting"
            console.write_now(f"{text}; stacks of all its threads:")
            faulthandler.dump_traceback(all_threads=True)
            console.write_now(text)
            os._exit(1)


def _function() -> str:
    """Return the function that the main thread is executing, with its line number.

    This is the innermost function of this package in the stack, or of any package if the stack has none of this one.
    """
    innermost = frame = sys._current_frames()[threading.main_thread().ident]
    while frame and not frame.f_globals.get("__name__", "").startswith("vitkd_ds"):
        frame = frame.f_back
    frame = frame or innermost
    return f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}, line {frame.f_lineno}"


def report(error: BaseException) -> None:
    """Log the error that ended this rank: first a traceback if it helps, then one line with rank, phase and step."""
    text = " ".join(str(error).split())[:500]
    hint = "this rank failed, so all ranks end"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        hint = "out of memory: lower --micro_batch_size_per_gpu"
    elif isinstance(error, RuntimeError) and any(sign in text for sign in PEER_SIGNS):
        hint = "another rank has ended or is unreachable: see its last lines or its node's log for the cause"
    if not hint.startswith("another") and not isinstance(error, SAY_ALL):
        logger.error("%s", "".join(traceback.format_exception(error)).rstrip())
    logger.error("%s: %s. %s: %s", where(), hint, type(error).__name__, text)
