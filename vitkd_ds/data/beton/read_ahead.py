"""Read images ahead of decoding, for slow disks such as network disks.

The decoder has one thread per CPU, so each read that waits leaves a CPU idle. Here many threads wait concurrently, and
the images are in the page cache when the decoder needs them. If they are already cached, or the disk is fast, only a
few images per micro-batch are read twice.
"""

import threading
from types import TracebackType

import numpy as np

from vitkd_ds.data.beton.decode import Decoder

BATCHES = 8
"""Number of micro-batches to read ahead of the last one taken."""
READERS = 64
"""Number of reading threads, which wait most of the time."""
PROBES = 8
"""Images per micro-batch whose read times decide whether the disk is slow."""
SLOW_S = 2e-4
"""Seconds per image from which a disk counts as slow. Decoding takes about 0.65 ms, and a cached read 0.02 ms."""


class ReadAhead(threading.Thread):
    """Thread that reads some micro-batches ahead of `taken`, within a `with` block."""

    def __init__(self, decoder: Decoder, indices: np.ndarray, *, micro_batch_size: int) -> None:
        super().__init__(daemon=True, name="read ahead")
        self._decoder = decoder
        self._indices = np.ascontiguousarray(indices)
        self._size = micro_batch_size
        self._taken = 0
        self._is_over = False
        self._changed = threading.Condition()

    def run(self) -> None:
        """Read micro-batches in order, except those already taken."""
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
        """Record that one more micro-batch was taken."""
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
