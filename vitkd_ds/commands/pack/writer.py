"""Run the processes that read and encode images; they always terminate and are reaped.

FFCV's own writer waits for ever when a worker raises or is killed, and nothing of an interrupted run can be used. Here
each worker writes whole parts (`vitkd_ds.commands.pack.parts`), and the parent moves them into the file in order, so
the bytes of the file depend on no worker.
"""

import contextlib
import ctypes
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import active_children, get_context

import cv2
import numpy as np
from tqdm import tqdm

from vitkd_ds.commands.pack.encode import Encoded, Encoding, encode
from vitkd_ds.commands.pack.parts import Part, Unfinished
from vitkd_ds.data.sources import Source

PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Packing:
    """Data that the workers share; they are forked, so nothing is copied."""

    source: Source
    encoding: Encoding
    order: np.ndarray
    """Number in the order of storing -> number in the source."""
    unfinished: Unfinished
    skip_bad: bool
    num_workers: int


def store_images(packing: Packing) -> None:
    """Bring all images into the unfinished file; with `skip_bad`, those that do not decode are left out.

    Raises:
        ValueError: an image does not decode and `skip_bad` is off.
        RuntimeError: a worker was killed, or a file cannot be read, or the disk is full.
    """
    unfinished = packing.unfinished
    parts = {number: unfinished.read_part(number) for number in range(unfinished.num_parts)}
    # Without skip_bad, an earlier run's bad images are tried again: they may have been repaired since.
    done = {number: part for number, part in parts.items() if part and (packing.skip_bad or not part.bad)}
    pending = [number for number in range(unfinished.num_parts) if number not in done]
    try:
        with (
            tqdm(total=len(packing.order), unit="img", desc="packing", disable=None) as bar,
            closing(_encoded(packing, pending)) as encoded,
        ):
            for number in range(unfinished.num_parts):
                part = done.get(number) or Part(number, next(encoded))
                for place, reason in part.bad.items():
                    if not packing.skip_bad:
                        raise _does_not_decode(packing, place, reason)
                unfinished.move(number, part)
                bar.update(len(unfinished.places(number)))
        unfinished.sync()
    except OSError as error:
        raise RuntimeError(f"images cannot be written: {error}. Is the disk or your share of it full?") from error


def _does_not_decode(packing: Packing, place: int, reason: str) -> ValueError:
    return ValueError(
        f"{packing.source.names[packing.order[place]]!r} does not decode ({reason}). Rerun the same command with "
        "--skip_bad, which leaves such files out and keeps what is packed. Or repair or remove the file, which makes "
        "another source of it, and start over with --restart."
    )


def _encoded(packing: Packing, pending: list[int]) -> Iterator[list]:
    """Have workers store the pending parts; yield what each part holds, in order."""
    if not pending:
        return
    before = set(active_children())
    cv2_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # its thread pool does not survive a fork
    pool = ProcessPoolExecutor(
        min(packing.num_workers, len(pending)), get_context("fork"), initializer=_begin, initargs=(packing, os.getpid())
    )
    workers = set()
    try:
        results = pool.map(_store_part, pending)  # all workers are forked here
        workers = set(active_children()) - before
        yield from results
    except BrokenProcessPool as error:
        pool.shutdown()
        codes = {worker.exitcode for worker in workers}
        if codes == {-signal.SIGTERM}:
            raise KeyboardInterrupt("SIGTERM") from None  # to the whole process group, as Slurm does
        raise RuntimeError(
            f"a packing worker was ended from outside (exit codes {sorted(codes)}; -9 is often a lack of memory). Run "
            "again with fewer workers."
        ) from error
    finally:
        # A second signal must not leave workers behind, for which the interpreter's end would wait.
        with handled_by(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            for worker in workers | set(active_children()) - before:
                worker.kill()
            pool.shutdown(cancel_futures=True)
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


_packing: Packing
"""What a worker packs; set in workers only."""


def _begin(packing: Packing, parent: int) -> None:
    """Prepare a worker, which must not write on when the parent is killed, and leaves signals to it."""
    global _packing
    _packing = packing
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _store_part(number: int) -> list:
    """In a worker: encode and store the images of a part, and return its rows (`Unfinished.finish_part`)."""
    unfinished = _packing.unfinished
    rows = []
    unfinished.forget(number)  # an earlier list is of other bytes
    with open(unfinished.content_path(number), "wb") as file:
        for place in unfinished.places(number):
            image = _load(_packing, int(_packing.order[place]))
            if isinstance(image, str):
                rows.append(image)
                if not _packing.skip_bad:
                    return rows  # unfinished, as the parent stops at it
                continue
            file.write(image.content)
            crc32 = zlib.crc32(image.content)
            rows.append([len(image.content), crc32, image.height, image.width, image.mode, image.origin])
    if not all(isinstance(row, str) for row in rows):  # a part without images is nothing to keep
        unfinished.finish_part(number, rows)
    return rows


def _load(packing: Packing, index: int) -> Encoded | str:
    """Return the image, or the reason why it does not decode; raises RuntimeError where that cannot be known."""
    name = packing.source.names[index]
    try:
        content = packing.source.read(index)
    except Exception as error:
        raise RuntimeError(f"{name!r} cannot be read: {type(error).__name__}: {error}") from error
    try:
        return encode(content, packing.encoding, number=index)
    except MemoryError as error:
        raise RuntimeError(f"{name!r} needs more memory than there is. Use fewer workers.") from error
    except Exception as error:  # Pillow's plugins raise whatever comes: OSError, SyntaxError, struct.error, ...
        return f"{type(error).__name__}: {error}"
