"""Terminal output: during training, only this module writes to the terminal.

Every module logs through `logging.getLogger(__name__)`, and the handler in this module prints the messages: warnings
and errors of every rank, but information only of rank 0. On a terminal, rank 0 also shows a progress bar. Elsewhere,
for example in a job's log file, it prints a progress line every few seconds. This module does not import torch, so that
messages can appear before slow imports.
"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from tqdm import tqdm

LINE_EVERY_S = 10.0
"""Minimum time in seconds between two progress lines, which are printed only if there is no bar."""


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.INFO and not is_first_rank():
            return
        with suppress(OSError):  # something may have replaced the stream that `secure` installed
            with tqdm.external_write_mode(file=sys.stderr):  # hides the bar while the message is written
                print(self.format(record), file=sys.stderr, flush=True)


class _Unfailing:
    """Text stream that drops text that it cannot write, for example on a full disk or a closed terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text if possible; return its length."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush if possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()


@contextmanager
def ending_quietly() -> Iterator[None]:
    """Exit without a traceback on Ctrl-C, or if the reader of stdout has exited (`vitkd-ds recipes | head -1`).

    The exit code is the usual one for SIGINT or SIGPIPE.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout again at exit
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        write_now("stopped")
        sys.exit(128 + signal.SIGINT)


def is_first_rank() -> bool:
    """Return whether this process is rank 0 according to the launcher's environment variables.

    Unlike the process group, these variables exist from the start.
    """
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def secure(name: str = "stderr") -> None:
    """Ensure that printing to the stream sys.`name` ("stderr" or "stdout") never raises an error.

    Call this before opening any file. A standard stream that is closed at startup is replaced by /dev/null. Without
    this, the next opened file would get that stream's descriptor, and a library's message could end up in a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets `number`, the lowest free descriptor
    stream = getattr(sys, name) or open(("stdout", "stderr").index(name) + 1, "w", closefd=False)
    if not isinstance(stream, _Unfailing):
        setattr(sys, name, _Unfailing(stream))


def install() -> None:
    """Print this package's log messages on stderr as plain text."""
    secure()
    logger = logging.getLogger("vitkd_ds")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Handler())


def write_now(text: str) -> None:
    """Write a line to stderr without buffering. This is safe in signal handlers and while other threads hang."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def progress_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """Return one line of text: the step, the speed, the remaining time, and every other value with its name."""
    shown = dict(values)
    text = f"step {step}/{total_steps}"
    if {"images_per_s", "s_per_step"} <= shown.keys():
        s_per_step = shown.pop("s_per_step")
        eta = (total_steps - step) * s_per_step
        text += f"  {shown.pop('images_per_s'):,.0f} images/s  eta {timedelta(seconds=round(eta))}"
        if "data_wait_s" in shown:  # logs of earlier versions lack it
            text += f"  {100 * shown.pop('data_wait_s') / s_per_step:.0f} % waiting for data"
    return text + "".join(f"  {name} {value:.4g}" for name, value in shown.items())


class Progress:
    """Progress display of a run: a bar on a terminal, or a line every few seconds elsewhere."""

    def __init__(self, total_steps: int, *, start_step: int) -> None:
        self.total_steps = total_steps
        self.shown_s = -LINE_EVERY_S
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def show(self, step: int, text: str, line: str) -> None:
        """Update the bar and show `text` next to it. Without a bar, print `line` unless the last line is too recent."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.shown_s >= LINE_EVERY_S or step == self.total_steps:
            self.shown_s = time.monotonic()
            logging.getLogger(__name__).info("%s", line)

    def close(self) -> None:
        """Stop updating the bar and leave it on the terminal."""
        if self.bar is not None:
            self.bar.close()
