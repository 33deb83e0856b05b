"""Speak to the user: the only place that writes to the terminal while a run trains.

Every module logs through `logging.getLogger(__name__)`, and the handler here prints: information from rank 0 alone,
warnings and errors from every rank. On a terminal rank 0 also shows a progress bar; elsewhere, as in a job's log, a
line every few seconds says the same. This file imports no torch: messages must be visible before the slow imports.
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
"""Least time between two progress lines where there is no bar."""


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.INFO and not is_first_rank():
            return
        with suppress(OSError):  # sys.stderr may be another stream than `secure` left there
            with tqdm.external_write_mode(file=sys.stderr):  # takes the bar away while the message is written
                print(self.format(record), file=sys.stderr, flush=True)


class _Unfailing:
    """A text stream that drops the text that it cannot write, as on a full disk or a closed terminal."""

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
    """End without a traceback, and as a shell expects it, where nobody reads stdout any more (`vitkd-ds recipes | head
    -1`), and on Ctrl-C."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # which the interpreter flushes at its end
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        write_now("stopped")
        sys.exit(128 + signal.SIGINT)


def is_first_rank() -> bool:
    """Whether this is rank 0 for its launcher, whose variables are there before the ranks meet."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def secure(name: str = "stderr") -> None:
    """Make printing to sys.stderr (or sys.stdout) never raise. Call it before any other file is opened.

    A standard stream that was closed at the start becomes /dev/null. Otherwise the next opened file would get its
    number, and a library's message would land in a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
    stream = getattr(sys, name) or open(("stdout", "stderr").index(name) + 1, "w", closefd=False)
    if not isinstance(stream, _Unfailing):
        setattr(sys, name, _Unfailing(stream))


def install() -> None:
    """Print the messages of all modules of this package on stderr, as plain text."""
    secure()
    logger = logging.getLogger("vitkd_ds")
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Handler())


def write_now(text: str) -> None:
    """Write a line to stderr at once, from a signal handler or from a thread while others are stuck."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def progress_line(step: int, total_steps: int, values: Mapping[str, float]) -> str:
    """A line of a log in words: the step, the speed with the time that is left, and each value by its name."""
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
    """The progress of a run: a bar on a terminal, else a line now and then."""

    def __init__(self, total_steps: int, *, start_step: int) -> None:
        self.total_steps = total_steps
        self.shown_s = -LINE_EVERY_S
        self.bar: Any = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def show(self, step: int, text: str, line: str) -> None:
        """Show how far the run is: `text` stands behind the bar, `line` is printed where there is none."""
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(step - self.bar.n)
        elif time.monotonic() - self.shown_s >= LINE_EVERY_S or step == self.total_steps:
            self.shown_s = time.monotonic()
            logging.getLogger(__name__).info("%s", line)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
