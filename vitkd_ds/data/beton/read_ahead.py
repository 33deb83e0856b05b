"""Read images before they are due where the disk is slow, as network disks are that answer after milliseconds.

The decoder's threads are as many as the CPUs, so each read that waits leaves a CPU idle. Here many threads wait at the
same time, and what they have read lies in the operating system's memory when the decoder asks for it. Where it lies
there already, or the disk is fast, a few images of each micro-batch are read twice, and no more.
"""

import threading
from types import TracebackType

import numpy as np

from vitkd_ds.data.beton.decode import Decoder

BATCHES = 8
"""Micro-batches, counted from the one that was taken last, whose images are read ahead."""
READERS = 64
"""Threads that read at the same time; nearly all of their time they wait."""
PROBES = 8
"""Images of a micro-batch by which the disk is judged."""
SLOW_S = 2e-4
"""Seconds for an image from which a disk is slow. To decode one takes about 0.65 ms, to copy it from memory 0.02 ms."""


class ReadAhead(threading.Thread):
    """A thread that stays some micro-batches ahead of `taken`, from `with` to its end."""

    def __init__(self, decoder: Decoder, indices: np.ndarray, *, micro_batch_size: int) -> None:
        super().__init__(daemon=True, name="read ahead")
        self._decoder = decoder
        self._indices = np.ascontiguousarray(indices)
        self._size = micro_batch_size
        self._taken = 0
        self._is_over = False
        self._changed = threading.Condition()

    def run(self) -> None:
        """Read micro-batch after micro-batch, except those that are taken already."""
        for number, first in enumerate(range(0, len(self._indices), self._size)):
            with self._changed:
                while number >= self._taken + BATCHES and not self._is_over:
                    self._changed.wait()
                if self._is_over:
                    return
                if number < self._taken:
                    continue
            soon = self._indices[first : first + self._size]
            seconds = self._decoder.read_ahead(soon[:PROBES], num_threads=READERS)
            if np.median(seconds) >= SLOW_S:
                self._decoder.read_ahead(soon[PROBES:], num_threads=READERS)

    def taken(self) -> None:
        """Note that one more micro-batch was taken."""
        with self._changed:
            self._taken += 1
            self._changed.notify()

    def __enter__(self) -> "ReadAhead":
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if threading.current_thread() is not self:
            self.join()
