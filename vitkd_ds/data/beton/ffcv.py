"""The one door to FFCV: every other file of this folder takes FFCV's names from here.

Separate because importing FFCV has effects on the whole process that must be undone in one place:

* it calls ``torch.set_num_threads(1)``, and later sets torch's threads to its own number of decoder threads whenever
  an epoch starts, from another thread. Here FFCV's switch is replaced by one that only notes the number.
* ``ffcv.fields.rgb_image`` builds a two-entry ``numba.typed.Dict``, whose compilation is 2.8 of the 3.1 CPU-seconds of
  the import. FFCV reads it only from plain Python, so it gets a plain dict.
* it sets numba's number of threads, which starts numba's thread pool; where processes are forked later, as packing
  does, the pool's own end then waits for ever when the interpreter ends. Nothing of ours runs in that pool.
A stock FFCV loader in the same process works, with numba's own number of threads.
"""

# ruff: noqa: E402
import numba
import numba.typed
import torch

_torch_threads = torch.get_num_threads()
_typed_dict, _set_num_threads = numba.typed.Dict, numba.set_num_threads
numba.typed.Dict, numba.set_num_threads = dict, lambda num_threads: None
try:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.loader.loader import Loader as FFCVLoader
    from ffcv.memory_managers.base import MemoryContext, MemoryManager
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
    """Note the number of decoder threads, and leave numba and torch alone."""
    compiler.num_threads = num_threads


Compiler.set_num_threads = classmethod(_note_num_threads)

__all__ = [
    "AllocationQuery",
    "Compiler",
    "EpochIterator",
    "FFCVLoader",
    "Graph",
    "IntField",
    "MemoryContext",
    "MemoryManager",
    "Operation",
    "PipelineSpec",
    "RGBImageField",
    "Reader",
]
