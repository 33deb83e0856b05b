"""The processes that read, encode and store images, with an end in every case: done, or an error, and all gone.

FFCV's own writer forks workers and then waits until they have written all samples, so a worker that raises or is
killed leaves it waiting for ever; and nothing of an interrupted job can be used. Here each worker has a pipe to the
parent, which hears of a death at once, and reports what it wrote, so that the journal can note it. The layout is
FFCV's: images lie in pages, and none crosses the end of its page.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import cv2
import numpy as np
from tqdm import tqdm

from vitkd_ds.commands.pack.encode import Encoded, Encoding, encode
from vitkd_ds.commands.pack.journal import RECORD_DTYPE, Journal, write_at
from vitkd_ds.data.sources import Source

PAGE_BYTES = 8 * 2**20
"""FFCV's usual page. A larger image gets as many as the next power of two holds, and the file that page size."""
CHUNK = 32
"""Images a worker takes, and then writes, at a time."""
SYNC_S = 2.0
"""How often the parent brings what was written to the disk: with a chunk per worker, what a kill can cost."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """What the workers share; they are forked, so nothing is copied."""

    source: Source
    encoding: Encoding
    order: np.ndarray
    """Number in the order of storing -> number in the source."""
    pending: np.ndarray
    """Numbers, in the order of storing, that are not stored yet."""
    skip_bad: bool


class _Pages:
    """Where one worker puts its images: pages of its own, filled one after the other."""

    def __init__(self, descriptor: int, next_page, pipe: Connection):
        self._descriptor, self._next_page, self._pipe = descriptor, next_page, pipe
        self._start, self._end = 0, 0  # of the free part of the page
        self._used = 0  # bytes of it, by the parts that are not written yet
        self._parts: list[bytes] = []
        self._rows: list[tuple] = []

    def add(self, number: int, image: Encoded) -> None:
        """Keep an image for the next flush, which comes now if its page is full."""
        size = len(image.content)
        if self._start + self._used + size > self._end:
            self.flush()
            self._take_pages(1 << (-(-size // PAGE_BYTES) - 1).bit_length())
        place = (number, self._start + self._used, size, image.crc32)
        self._rows.append((*place, image.height, image.width, image.mode, image.origin))
        self._parts.append(image.content)
        self._used += size

    def flush(self) -> None:
        """Write what was added and report it."""
        if self._parts:
            write_at(self._descriptor, b"".join(self._parts), self._start)
            self._pipe.send(("stored", np.array(self._rows, RECORD_DTYPE)))
            self._start += self._used
            self._used, self._parts, self._rows = 0, [], []

    def _take_pages(self, count: int) -> None:
        """Take the next `count` pages, a power of two, that a page of that size would be."""
        with self._next_page.get_lock():
            first = -(-self._next_page.value // count) * count
            self._next_page.value = first + count
        self._start, self._end = first * PAGE_BYTES, (first + count) * PAGE_BYTES


def store_images(job: Job, journal: Journal, *, first_byte: int, num_workers: int) -> list[tuple[int, str]]:
    """Store all pending images and note them in the journal.

    Args:
        job: what to store.
        journal: where.
        first_byte: images are stored behind this position.
        num_workers: processes.

    Returns:
        Number in the source, and reason, of each image that was left out.

    Raises:
        ValueError: a file cannot be decoded and `skip_bad` is off.
        RuntimeError: a worker failed or was killed, or a file cannot be read, or the disk is full.
    """
    fork = multiprocessing.get_context("fork")
    taken, next_page = fork.Value("Q", 0), fork.Value("Q", -(-max(first_byte, journal.end) // PAGE_BYTES))
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
    workers, pipes = [], []
    try:
        for _ in range(num_workers):
            receiver, sender = fork.Pipe(duplex=False)
            arguments = (job, journal.data, taken, next_page, sender, os.getpid())
            workers.append(fork.Process(target=_work, args=arguments, daemon=True))
            pipes.append(receiver)
            workers[-1].start()
            sender.close()  # so that the pipe ends with the worker
        return _follow(job, journal, dict(zip(pipes, workers)))
    finally:
        with _undisturbed():  # a second signal must not leave workers behind, for which the interpreter's end waits
            started = [worker for worker in workers if worker.pid is not None]
            for worker in started:
                worker.kill()
            for worker in started:
                worker.join()
        for pipe in pipes:
            pipe.close()
        cv2.setNumThreads(cv2_threads)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let SIGINT and SIGTERM pass by, where Python has handlers at all: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(job: Job, descriptor: int, taken, next_page, pipe: Connection, parent: int) -> None:
    """In a worker: store chunks until none is left. Never raises; reports instead."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a worker must not write on when the parent is killed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        pages = _Pages(descriptor, next_page, pipe)
        while os.getppid() == parent:
            with taken.get_lock():
                chunk = job.pending[taken.value : taken.value + CHUNK].tolist()
                taken.value += CHUNK
            if not chunk:
                break
            for number in chunk:
                image = _load(job, int(job.order[number]))
                if isinstance(image, str):
                    pipe.send(("bad", (int(job.order[number]), image)))
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


def _load(job: Job, index: int) -> Encoded | str:
    """The image, or why it cannot be used."""
    try:
        content = job.source.read(index)
    except Exception as error:
        raise _CannotRead(f"{job.source.names[index]!r} cannot be read: {type(error).__name__}: {error}") from error
    try:
        return encode(content, job.encoding, number=index)
    except MemoryError as error:
        raise _CannotRead(f"{job.source.names[index]!r} needs more memory than there is: use fewer workers") from error
    except Exception as error:  # Pillow's plugins raise whatever comes: OSError, SyntaxError, struct.error, ...
        return f"{type(error).__name__}: {error}"


def _follow(job: Job, journal: Journal, workers: dict[Connection, multiprocessing.Process]) -> list[tuple[int, str]]:
    """In the parent: note what is stored until all workers have finished; what was stored is noted in any case."""
    bad: list[tuple[int, str]] = []
    waiting: list[np.ndarray] = []
    synced = time.monotonic()
    try:
        with tqdm(total=len(job.order), initial=journal.num_images, unit="img", desc="packing", disable=None) as bar:
            for kind, content in _messages(workers):
                if kind == "stored":
                    waiting.append(content)
                    bar.update(len(content))
                elif kind == "bad":
                    bad.append(content)
                    bar.update(1)
                    _check_bad(job, *content)
                if waiting and time.monotonic() - synced >= SYNC_S:
                    journal.append(np.concatenate(waiting))
                    waiting = []  # afterwards, as a signal may come in between: noted twice is better than never
                    synced = time.monotonic()
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be what failed
            journal.append(np.concatenate([*waiting, np.zeros(0, RECORD_DTYPE)]))
        raise
    if waiting:
        journal.append(np.concatenate(waiting))
    return bad


def _check_bad(job: Job, index: int, reason: str) -> None:
    if not job.skip_bad:
        raise ValueError(
            f"every image must decode, but {job.source.names[index]!r} does not ({reason}): give the same command with "
            f"--skip_bad, which leaves such files out and keeps what is packed, or repair or remove the file, which "
            f"makes another source of it, and begin again with --restart"
        )


def _messages(workers: dict[Connection, multiprocessing.Process]) -> Iterator[tuple[str, object]]:
    """What the workers report, or "nothing" for a while, until all have finished.

    Raises:
        RuntimeError: a worker failed, or ended without a word.
    """
    workers = dict(workers)
    while workers:
        ready = wait(list(workers), timeout=SYNC_S)
        if not ready:
            yield "nothing", None
        for pipe in ready:
            try:
                kind, content = pipe.recv()
            except EOFError:
                workers[pipe].join()
                if workers[pipe].exitcode == -signal.SIGTERM:
                    raise KeyboardInterrupt("SIGTERM") from None  # to the whole process group, as Slurm does
                raise RuntimeError(
                    f"a packing worker was ended from outside (exit code {workers[pipe].exitcode}; -9 is often "
                    f"a lack of memory): run again, with fewer workers"
                ) from None
            if kind == "failed":
                raise RuntimeError(f"a packing worker failed: {content}")
            if kind == "finished":
                del workers[pipe]
            yield kind, content
