"""Run the processes that read, encode and store images; they always terminate and are reaped.

FFCV's own writer waits for ever when a worker raises or is killed, and nothing of an interrupted run can be used. Here
each worker has a pipe to the parent, which hears of a death at once; through it the worker reports what it wrote, which
the parent notes in the journal. Images lie as FFCV puts them: in pages, and none crosses the end of its page.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import Process, get_context
from multiprocessing.connection import Connection, wait

import cv2
import numpy as np
from tqdm import tqdm

from vitkd_ds.commands.pack.encode import Encoded, Encoding, encode
from vitkd_ds.commands.pack.journal import RECORD_DTYPE, Journal, write_at
from vitkd_ds.data.beton.format import PAGE_BYTES
from vitkd_ds.data.sources import Source

CHUNK = 32
"""Images a worker takes, and then writes, at a time."""
SYNC_S = 2.0
"""Seconds between the parent's writes to the disk; with a chunk per worker, this is what a kill can cost."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Packing:
    """Data that the workers share; they are forked, so nothing is copied."""

    source: Source
    encoding: Encoding
    order: np.ndarray
    """Number in the order of storing -> number in the source."""
    pending: np.ndarray
    """Numbers, in the order of storing, that are not stored yet."""
    skip_bad: bool


class _Pages:
    """Place of one worker's images: pages of its own, filled one after the other. A page that is larger than
    `PAGE_BYTES` is as many of them as the next power of two."""

    def __init__(self, descriptor: int, next_page, pipe: Connection):
        self._descriptor, self._next_page, self._pipe = descriptor, next_page, pipe
        self._position, self._end = 0, 0  # of the free part of the page
        self._contents, self._rows = [], []

    def add(self, number: int, image: Encoded) -> None:
        """Keep an image for the next flush, which comes now if its page is full."""
        size = len(image.content)
        if self._position + size > self._end:
            self.flush()
            count = 1 << (-(-size // PAGE_BYTES) - 1).bit_length()
            with self._next_page.get_lock():
                first = -(-self._next_page.value // count) * count
                self._next_page.value = first + count
            self._position, self._end = first * PAGE_BYTES, (first + count) * PAGE_BYTES
        place = (number, self._position, size, zlib.crc32(image.content))
        self._rows.append((*place, image.height, image.width, image.mode, image.origin))
        self._contents.append(image.content)
        self._position += size

    def flush(self) -> None:
        """Write what was added and report it."""
        if self._contents:
            content = b"".join(self._contents)
            write_at(self._descriptor, content, self._position - len(content))
            self._pipe.send(("stored", np.array(self._rows, RECORD_DTYPE)))
            self._contents, self._rows = [], []


def store_images(packing: Packing, journal: Journal, *, first_byte: int, num_workers: int) -> list[tuple[int, str]]:
    """Store all pending images from `first_byte` on; number in the source, and reason, of each that was left out.

    Raises:
        ValueError: a file cannot be decoded and `skip_bad` is off.
        RuntimeError: a worker failed or was killed, or a file cannot be read, or the disk is full.
    """
    fork = get_context("fork")
    taken, next_page = fork.Value("Q", 0), fork.Value("Q", -(-max(first_byte, journal.end) // PAGE_BYTES))
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
    workers: dict[Connection, Process] = {}
    try:
        for _ in range(num_workers):
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (packing, journal.data, taken, next_page, sender, os.getpid())
            workers[receiver] = fork.Process(target=_work, args=arguments, daemon=True)
            workers[receiver].start()
            sender.close()  # so that the pipe ends with the worker
        return _follow(packing, journal, workers)
    finally:
        # A second signal must not leave workers behind, for which the interpreter's end would wait.
        with handled_by(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            started = [worker for worker in workers.values() if worker.pid is not None]
            for worker in started:
                worker.kill()
            for worker in started:
                worker.join()
        for pipe in workers:
            pipe.close()
        cv2.setNumThreads(cv2_threads)


@contextlib.contextmanager
def handled_by(handler: Callable | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """Set a handler of signals for a while, where Python has handlers at all: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


def _work(packing: Packing, descriptor: int, taken, next_page, pipe: Connection, parent: int) -> None:
    """In a worker: store chunks until none is left. Never raises; reports instead."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a worker must not write on when the parent is killed
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pages = _Pages(descriptor, next_page, pipe)
        while os.getppid() == parent:
            with taken.get_lock():
                chunk = packing.pending[taken.value : taken.value + CHUNK].tolist()
                taken.value += CHUNK
            if not chunk:
                break
            for number in chunk:
                index = int(packing.order[number])
                image = _load(packing, index)
                if isinstance(image, str):
                    pipe.send(("bad", (index, image)))
                else:
                    pages.add(number, image)
            pages.flush()
        pipe.send(("finished", None))
    except _CannotRead as error:
        pipe.send(("failed", str(error)))
    except OSError as error:
        pipe.send(("failed", f"images cannot be written, found {error}: is the disk or your share of it full?"))
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))


class _CannotRead(Exception):
    """The bytes of an image cannot be had, which says nothing about the image."""


def _load(packing: Packing, index: int) -> Encoded | str:
    """The image, or why it cannot be used."""
    name = packing.source.names[index]
    try:
        content = packing.source.read(index)
    except Exception as error:
        raise _CannotRead(f"{name!r} cannot be read: {type(error).__name__}: {error}") from error
    try:
        return encode(content, packing.encoding, number=index)
    except MemoryError as error:
        raise _CannotRead(f"{name!r} needs more memory than there is: use fewer workers") from error
    except Exception as error:  # Pillow's plugins raise whatever comes: OSError, SyntaxError, struct.error, ...
        return f"{type(error).__name__}: {error}"


def _follow(packing: Packing, journal: Journal, workers: dict[Connection, Process]) -> list[tuple[int, str]]:
    """In the parent: note what is stored until all workers have finished."""
    bad, running, synced = [], dict(workers), time.monotonic()
    total, initial = len(packing.order), len(journal.records)
    with tqdm(total=total, initial=initial, unit="img", desc="packing", disable=None) as bar:
        while running:
            for pipe in wait(list(running), timeout=SYNC_S):
                kind, content = _received(pipe, running[pipe])
                if kind == "stored":
                    journal.added.append(content)
                    bar.update(len(content))
                elif kind == "finished":
                    del running[pipe]
                elif packing.skip_bad:
                    bad.append(content)
                    bar.update(1)
                else:
                    raise ValueError(
                        f"every image must decode, but {packing.source.names[content[0]]!r} does not ({content[1]}): "
                        f"give the same command with --skip_bad, which leaves such files out and keeps what is packed, "
                        f"or repair or remove the file, which makes another source of it, and begin again with "
                        f"--restart"
                    )
            # Each write to the disk waits for it, so it comes seldom; an error notes what is left in `open_journal`.
            if time.monotonic() - synced >= SYNC_S:
                journal.sync()
                synced = time.monotonic()
    journal.sync()
    return bad


def _received(pipe: Connection, worker: Process) -> tuple[str, object]:
    """Receive a worker's next report: "stored", "bad" or "finished", and its content; an error where it failed."""
    try:
        kind, content = pipe.recv()
    except EOFError:
        worker.join()
        if worker.exitcode == -signal.SIGTERM:
            raise KeyboardInterrupt("SIGTERM") from None  # to the whole process group, as Slurm does
        raise RuntimeError(
            f"a packing worker was ended from outside (exit code {worker.exitcode}; -9 is often a lack of memory): "
            f"run again, with fewer workers"
        ) from None
    if kind == "failed":
        raise RuntimeError(f"a packing worker failed: {content}")
    return kind, content
