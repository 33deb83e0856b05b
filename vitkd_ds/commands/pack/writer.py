"""Run the worker processes that read and encode images. No worker outlives the pack.

FFCV's own writer hangs if a worker raises an error or is killed, and it cannot continue an interrupted pack. Here each
worker writes whole parts of 64 images (`parts.py`), and the parent process moves the parts into the final file in
order. The file's contents therefore do not depend on the number or the timing of workers.
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
from vitkd_ds.commands.pack.parts import Part, Unfinished, discard
from vitkd_ds.data.sources import Source

PR_SET_PDEATHSIG = 1


class DoesNotDecode(ValueError):
    """An image does not decode, and `skip_bad` is off."""


@dataclass(frozen=True)
class Packing:
    """Inputs of packing. Workers are forked and share them with the parent process, so nothing is copied."""

    source: Source
    encoding: Encoding
    order: np.ndarray
    """Array that maps an image's number in the storing order to its number in the source."""
    unfinished: Unfinished
    skip_bad: bool
    num_workers: int


def store_images(packing: Packing) -> None:
    """Store all images in the unfinished file. With `skip_bad`, skip images that do not decode.

    Raises:
        DoesNotDecode: an image does not decode and `skip_bad` is off.
        RuntimeError: a worker was killed, an image file cannot be read, or the disk is full.
    """
    unfinished = packing.unfinished
    parts = {number: unfinished.read_part(number) for number in range(unfinished.num_parts)}
    # Without skip_bad, retry images that an earlier run could not decode: they may have been fixed.
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
        raise RuntimeError(f"cannot write images: {error}. Check free disk space and your quota.") from error


def _does_not_decode(packing: Packing, place: int, reason: str) -> DoesNotDecode:
    return DoesNotDecode(
        f"{packing.source.names[packing.order[place]]!r} does not decode ({reason}). Pass --skip_bad to "
        "vitkd-ds pack to skip such files and keep the images packed so far. To start over instead, fix or remove the "
        f"file and run: {discard(packing.unfinished.images.parent)}"
    )


def _encoded(packing: Packing, pending: list[int]) -> Iterator[list]:
    """Encode and store the pending parts in workers. Yield each part's rows (see `Unfinished.finish_part`) in order."""
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
            raise KeyboardInterrupt("SIGTERM") from None  # sent to the whole process group, as Slurm does
        raise RuntimeError(
            f"a packing worker was killed (exit codes {sorted(codes)}; -9 often means out of memory). Rerun "
            "`vitkd-ds pack` with fewer --workers."
        ) from error
    finally:
        # Ignore further signals: they would leave workers running, and the interpreter would wait for them at exit.
        with handled_by(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            for worker in workers | set(active_children()) - before:
                worker.kill()
            pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(cv2_threads)


@contextlib.contextmanager
def handled_by(handler: Callable | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """Set a handler for signals temporarily, but only in the main thread: Python forbids handlers in other threads.

    Args:
        handler: handler to set.
        numbers: signals to handle.
    """
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
"""Inputs of packing; set only in worker processes."""


def _begin(packing: Packing, parent: int) -> None:
    """Prepare a worker process: it is killed when its parent exits, and it ignores SIGINT and SIGUSR1.

    The parent handles these signals and ends its workers. SIGTERM ends a worker as usual.
    """
    global _packing
    _packing = packing
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _store_part(number: int) -> list:
    """Encode and store the images of a part, in a worker. Return the part's rows (see `Unfinished.finish_part`)."""
    unfinished = _packing.unfinished
    rows = []
    unfinished.forget(number)  # an earlier list would describe other bytes
    with open(unfinished.content_path(number), "wb") as file:
        for place in unfinished.places(number):
            image = _load(_packing, int(_packing.order[place]))
            if isinstance(image, str):
                rows.append(image)
                if not _packing.skip_bad:
                    return rows  # leave the part unfinished: the parent stops here
                continue
            file.write(image.content)
            crc32 = zlib.crc32(image.content)
            rows.append([len(image.content), crc32, image.height, image.width, image.mode, image.origin])
    if not all(isinstance(row, str) for row in rows):  # keep no part without images
        unfinished.finish_part(number, rows)
    return rows


def _load(packing: Packing, index: int) -> Encoded | str:
    """Return the encoded image, or the reason why the file does not decode.

    Raises:
        RuntimeError: the file cannot be read, or there is not enough memory.
    """
    name = packing.source.names[index]
    try:
        content = packing.source.read(index)
    except Exception as error:
        raise RuntimeError(f"cannot read {name!r}: {type(error).__name__}: {error}") from error
    try:
        return encode(content, packing.encoding, number=index)
    except MemoryError as error:
        raise RuntimeError(f"not enough memory to encode {name!r}. Pass fewer --workers.") from error
    except Exception as error:  # Pillow's plugins raise many types: OSError, SyntaxError, struct.error, ...
        return f"{type(error).__name__}: {error}"
