"""FFCV, tamed: the only file that imports it, and its loader with one operation of ours and passes that always end.

Importing FFCV has effects on the whole process, which are undone here:

* It calls ``torch.set_num_threads(1)``, and whenever an epoch starts it sets torch's threads to its own number of
  decoder threads, from another thread. FFCV's switch is replaced by one that only notes the number.
* ``ffcv.fields.rgb_image`` builds a two-entry ``numba.typed.Dict``, whose compilation is 2.8 of the 3.1 CPU-seconds of
  the import. FFCV reads it only from plain Python, so it gets a plain dict.
* It sets numba's number of threads, which starts numba's thread pool. Nothing of ours runs in that pool, and where
  processes are forked later, as packing does, its own end would wait for ever when the interpreter ends.

A stock FFCV loader in the same process works, with numba's own number of threads.
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
"""Micro-batches decoded ahead; FFCV's ring holds two more."""
POLL_S = 1.0
"""Seconds after which a waiting reader looks whether the decoding thread is alive."""


class DecodingThread(EpochIterator):
    """FFCV's thread, which decodes the samples of one pass ahead of its reader, and always ends.

    FFCV's own iterator blocks for ever when its thread has died, blocks for ever in its thread when nobody takes the
    last micro-batch, and leaves the thread and its buffers behind when a loop is left early.
    """

    error: BaseException | None = None
    """Error that ended the thread."""

    def __init__(self, loader: FFCVLoader, order: np.ndarray) -> None:
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        super().__init__(loader, order)  # starts the thread

    def run(self) -> None:
        """Decode until the samples end or `shut` is called."""
        try:
            if self._device is not None:
                # A new thread has device 0, on which it would make a context of half a GB, for each rank of a node.
                torch.cuda.set_device(self._device)
            super().run()
        except BaseException as error:  # handed over to the reader, which raises
            self.error = error

    def take(self) -> tuple | None:
        """Wait for the next micro-batch; None at the end. Raises RuntimeError when the thread has died."""
        while True:
            alive = self.is_alive()  # before looking: what it left behind is still served
            try:
                item = self.output_queue.get(timeout=POLL_S if alive else 0)
                return None if item is None else item[1]
            except queue.Empty:
                if not alive:
                    found = f"the decoding thread of {self.loader.fname} died: {self.error!r}"
                    raise RuntimeError(found) from self.error

    def shut(self) -> None:
        """End the thread and wait for it, after at most the micro-batch it is decoding."""
        self.iter_ixes = iter(())
        self.close()
        # The garbage collector may run this in the thread itself, which cannot wait for its own end. It needs no more
        # than room in the queue for its micro-batch and its last word, and then ends by itself.
        if threading.current_thread() is self:
            while not self.output_queue.empty():
                self.output_queue.get_nowait()
            return
        while self.is_alive():
            try:
                self.output_queue.get(timeout=0.02)  # room for its last word, or it would wait for ever
            except queue.Empty:
                pass
        self.join()


class _NoMemory(nullcontext):
    """FFCV's memory manager and its context, for a pipeline that reads by itself. FFCV's own holds a set per image in
    Python's memory, 700 MB for ImageNet, and maps the file, which ends the process when another one shortens it."""

    state_type = state = None

    def compile_reader(self):
        """Do nothing, as nothing reads through FFCV."""

    def schedule_epoch(self, batches):
        """Load nothing, and be the context of the epoch."""
        return self

    def start_batch(self, batch):
        """Load nothing."""


class TamedLoader(FFCVLoader):
    """FFCV's loader of a .beton, whose whole pipeline is one operation that reads and decodes by itself."""

    def __init__(self, path: Path, operation: Operation, *, micro_batch_size: int, num_workers: int):
        # Not super().__init__: it builds the original of the memory manager above, and nothing in it can be declined.
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
        self.reader.alloc_table = None  # 24 bytes per image, which the decoder's table holds already

    def generate_code(self) -> None:
        """Let FFCV join the operations, in Python: our only one is compiled already."""
        was_enabled = Compiler.is_enabled
        Compiler.set_enabled(False)
        try:
            super().generate_code()
        finally:
            Compiler.set_enabled(was_enabled)

    def results(self, samples: np.ndarray) -> Iterator[tuple]:
        """Iterate over what the operation gives for the samples, in order, a micro-batch at a time: views of FFCV's
        ring of buffers, valid until the next one is asked for."""
        if len(samples) == 0:
            return
        thread = DecodingThread(self, samples)
        try:
            while (item := thread.take()) is not None:
                yield item[0]
        finally:
            thread.shut()
