"""Read images ahead of decoding, for slow disks such as network disks.

The decoder has one thread per CPU, so a CPU is idle while a decoder thread waits for the disk. Here, many threads read
at the same time, so that the images are in the page cache when the decoder needs them. First, only a few images of each
micro-batch are read. If this is fast, because the images are already cached or the disk is fast, the other images of
the micro-batch are not read ahead.
"""

import threading
from types import TracebackType

import numpy as np

from vitkd_ds.data.beton.decode import Decoder

BATCHES = 8
"""Number of micro-batches to read ahead of the last one that the training loop has taken."""
READERS = 64
"""Number of reading threads, which wait most of the time."""
PROBES = 8
"""Number of timed image reads per micro-batch. Their median decides whether the disk is slow."""
SLOW_S = 2e-4
"""Median read time per image, in seconds, from which a disk counts as slow.

Decoding an image takes about 0.65 ms, and reading a cached image takes 0.02 ms.
"""


class ReadAhead(threading.Thread):
    """Thread that reads the images of the next micro-batches; it runs within a `with` block.

    The training loop calls `taken` for each micro-batch that it takes.
    """

    def __init__(self, decoder: Decoder, indices: np.ndarray, *, micro_batch_size: int) -> None:
        super().__init__(daemon=True, name="read ahead")
        self._decoder = decoder
        self._indices = np.ascontiguousarray(indices)
        self._size = micro_batch_size
        self._taken = 0
        self._is_over = False
        self._changed = threading.Condition()

    def run(self) -> None:
        """Read the micro-batches in order; skip micro-batches that the training loop has already taken."""
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
        """Record that the training loop has taken one more micro-batch."""
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
