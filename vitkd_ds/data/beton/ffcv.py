"""FFCV's loader with our decoder as its only operation, and epochs that always end.

This is the only module that imports ffcv. Importing FFCV affects the whole process. This module undoes these effects:

* FFCV calls ``torch.set_num_threads(1)`` when it is imported. At the start of each epoch, it also sets torch's thread
  count to the number of its decoder threads, from another thread. This module restores the thread count after the
  import. It also replaces the function that FFCV calls for each epoch with one that only records the number.
* ``ffcv.fields.rgb_image`` builds a ``numba.typed.Dict`` with two entries. Compiling it takes 2.8 of the 3.1
  CPU-seconds of the import. This module builds a plain dict instead, because FFCV reads it only in plain Python code.
* FFCV sets numba's thread count, which starts numba's thread pool. This package does not use the pool. If processes are
  forked later, as in packing, the pool would hang when the interpreter exits. During the import, this module replaces
  the function that sets the count with one that does nothing.

An unmodified FFCV loader in the same process still works, with numba's default thread count.
"""

# ruff: noqa: F401
import queue
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numba
import numba.typed
import numpy as np
import torch

_torch_threads = torch.get_num_threads()
_typed_dict, _set_num_threads = numba.typed.Dict, numba.set_num_threads
numba.typed.Dict, numba.set_num_threads = dict, lambda num_threads: None
try:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.loader.loader import Loader as FFCVLoader
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.graph import Graph
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.reader import Reader
finally:
    numba.typed.Dict, numba.set_num_threads = _typed_dict, _set_num_threads
    torch.set_num_threads(_torch_threads)


def _note_num_threads(compiler: type, num_threads: int) -> None:
    compiler.num_threads = num_threads


Compiler.set_num_threads = classmethod(_note_num_threads)

BATCHES_AHEAD = 3
"""Number of micro-batches that are decoded ahead. FFCV's ring of buffers holds two more."""
POLL_S = 1.0
"""Interval in seconds at which a waiting `take` checks that the decoding thread is alive."""


class DecodingThread(EpochIterator):
    """FFCV's thread that decodes the samples of one pass ahead of the training loop, changed so that it always ends.

    In FFCV itself, the loop hangs if the thread has died, and the thread hangs if the last micro-batch is never taken.
    If a loop ends early, FFCV never frees the thread and its buffers.
    """

    error: BaseException | None = None
    """Error that ended the thread, or None."""

    def __init__(self, loader: FFCVLoader, order: np.ndarray) -> None:
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        """Decode until the samples end or `shut` is called."""
        try:
            if self._device is not None:
                # A new thread uses device 0, where each rank of the node would create a context of half a GB.
                torch.cuda.set_device(self._device)
            super().run()
        except BaseException as error:  # `take` raises it in the reader
            self.error = error

    def take(self) -> tuple | None:
        """Return the next micro-batch, or None after the last one; raise RuntimeError if the thread has died."""
        while True:
            alive = self.is_alive()  # checked first, so that batches queued before its death are still returned
            try:
                item = self.output_queue.get(timeout=POLL_S if alive else 0)
                return None if item is None else item[1]
            except queue.Empty:
                if not alive:
                    found = f"the decoding thread of {self.loader.fname} died: {self.error!r}"
                    raise RuntimeError(found) from self.error

    def shut(self) -> None:
        """Stop the thread, and wait until it has ended. It may still finish the micro-batch that it is decoding."""
        self.iter_ixes = iter(())
        self.close()
        # The garbage collector may call this in the thread itself, which cannot join itself. The thread only needs
        # space in the queue for its micro-batch and the end mark; then it exits.
        if threading.current_thread() is self:
            while not self.output_queue.empty():
                self.output_queue.get_nowait()
            return
        while self.is_alive():
            try:
                self.output_queue.get(timeout=0.02)  # make room for the end mark; otherwise the thread would block
            except queue.Empty:
                pass
        self.join()


class _NoMemory(nullcontext):
    """Replacement for FFCV's memory manager and its context. It does nothing, because our operation reads the file.

    FFCV's memory manager keeps a Python set for each image, which takes 700 MB for ImageNet. It also maps the file into
    memory. If another process truncates a mapped file, this process crashes.
    """

    state_type = state = None

    def compile_reader(self):
        """Do nothing, because our operation does not read the file through FFCV."""

    def schedule_epoch(self, batches):
        """Load nothing, and return this object as the context of the epoch."""
        return self

    def start_batch(self, batch):
        """Load nothing."""


class TamedLoader(FFCVLoader):
    """FFCV's loader of a .beton with a single operation, which reads and decodes the images."""

    def __init__(self, path: Path, operation: Operation, *, micro_batch_size: int, num_workers: int):
        # Do not call super().__init__: it always builds FFCV's own memory manager.
        self.fname = str(path)
        self.batch_size = micro_batch_size
        self.batches_ahead = BATCHES_AHEAD
        self.num_workers = num_workers
        self.traversal_order = None
        self.recompile = False
        self.memory_manager = _NoMemory()
        self.reader = Reader(self.fname)
        self.field_name_to_f_ix = {name: i for i, name in enumerate(self.reader.field_names)}
        pipelines = {"image": PipelineSpec("image", decoder=operation)}
        names = self.field_name_to_f_ix
        self.graph = Graph(pipelines, self.reader.handlers, names, self.reader.metadata, memory_read=None)
        self.generate_code()
        self.reader.alloc_table = None  # frees 24 bytes per image; the decoder's table has this data

    def generate_code(self) -> None:
        """Let FFCV generate the code of its pipeline without compiling it; our operation is already compiled."""
        was_enabled = Compiler.is_enabled
        Compiler.set_enabled(False)
        try:
            super().generate_code()
        finally:
            Compiler.set_enabled(was_enabled)

    def results(self, samples: np.ndarray) -> Iterator[tuple]:
        """Yield the operation's results for the samples, in order, one micro-batch at a time.

        A result consists of views of FFCV's ring of buffers. It is valid until the next result is requested.
        """
        if len(samples) == 0:
            return
        thread = DecodingThread(self, samples)
        try:
            while (item := thread.take()) is not None:
                yield item[0]
        finally:
            thread.shut()
