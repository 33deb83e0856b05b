"""The one door to FFCV: every other file of this folder takes FFCV's names from here.

Separate because importing FFCV has effects on the whole process that must be undone in one place:

* it calls ``torch.set_num_threads(1)``, and later sets torch's threads to its own number of decoder threads whenever
  an epoch starts, from another thread. Here FFCV's switch is replaced by one that touches numba's threads only.
* ``ffcv.fields.rgb_image`` builds a two-entry ``numba.typed.Dict``, whose compilation is 2.8 of the 3.1 CPU-seconds of
  the import. FFCV reads it only from plain Python, so it gets a plain dict.
"""

# ruff: noqa: E402
import numba
import numba.typed
import torch

_torch_threads = torch.get_num_threads()
_typed_dict = numba.typed.Dict
numba.typed.Dict = dict
try:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.loader.loader import Loader as FFCVLoader
    from ffcv.loader.loader import OrderOption
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.pipeline_spec import PipelineSpec
    from ffcv.types import ALLOC_TABLE_TYPE
    from ffcv.writer import DatasetWriter, handle_sample
finally:
    numba.typed.Dict = _typed_dict
    torch.set_num_threads(_torch_threads)


def _set_numba_threads(compiler: type, num_threads: int) -> None:
    """Set the decoder threads of the calling thread, and nothing of torch."""
    compiler.num_threads = num_threads
    numba.set_num_threads(num_threads)


Compiler.set_num_threads = classmethod(_set_numba_threads)

MAX_DECODER_THREADS = numba.config.NUMBA_NUM_THREADS
"""Most decoder threads numba gives this process: the CPUs it could use when it started."""

__all__ = [
    "ALLOC_TABLE_TYPE",
    "AllocationQuery",
    "Compiler",
    "DatasetWriter",
    "EpochIterator",
    "FFCVLoader",
    "IMAGE_MODES",
    "IntField",
    "MAX_DECODER_THREADS",
    "MemoryAllocator",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "RGBImageField",
    "handle_sample",
    "imdecode",
    "resize_crop",
]
