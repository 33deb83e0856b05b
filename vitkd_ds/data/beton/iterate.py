"""One pass over samples of an epoch with FFCV's thread, which always ends: with the samples, an error, or a break.

FFCV's iterator alone blocks for ever when its thread has died, blocks for ever in its thread when nobody takes the last
micro-batch, and leaves the thread and its buffers behind when a loop is left early. Separate from the loader, which
knows what the samples mean; this file knows how FFCV's thread behaves.
"""

import queue
import threading
from collections.abc import Iterator

import numpy as np

from vitkd_ds.data.beton.ffcv import EpochIterator, FFCVLoader

POLL_S = 1.0
"""How often a waiting reader looks whether the decoding thread is alive."""


class DecodingThread(EpochIterator):
    """FFCV's thread, with its death recorded in `error` in place of a traceback on stderr."""

    error: BaseException | None = None

    def run(self) -> None:
        """Decode until the samples end or `shut` is called."""
        try:
            super().run()
        except BaseException as error:  # handed over to the reader, which raises
            self.error = error

    def take(self) -> tuple | None:
        """Wait for the next micro-batch; None at the end. Raises RuntimeError when the thread has died."""
        while True:
            alive = self.is_alive()  # before looking: what it left behind is still served
            try:
                item = self.output_queue.get(timeout=POLL_S if alive else 0)
            except queue.Empty:
                if alive:
                    continue
                raise RuntimeError(f"the decoding thread of {self.loader.fname} died: {self.error!r}") from self.error
            return None if item is None else item[1]

    def shut(self) -> None:
        """End the thread and wait for it, after at most the micro-batch it is decoding."""
        self.iter_ixes = iter(())
        self.close()
        if threading.current_thread() is self:  # the collector of garbage may run here; the thread ends by itself
            while not self.output_queue.empty():
                self.output_queue.get_nowait()  # room for its micro-batch and its last word
            return
        while self.is_alive():
            try:
                self.output_queue.get(timeout=0.02)  # room for its last word, or it would wait for ever
            except queue.Empty:
                pass
        self.join()


def decoded(loader: FFCVLoader, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode the samples in order, a micro-batch at a time.

    Yields:
        images and status as `CropDecoder` gives them: views of FFCV's ring, valid until the next one is asked for.
    """
    if len(samples) == 0:
        return
    thread = DecodingThread(loader, samples)
    try:
        while (item := thread.take()) is not None:
            yield item[0]
    finally:
        thread.shut()
