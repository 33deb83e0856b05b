"""Copies of arrays as tensors, where a plain copy would cost time: small ones to a GPU, micro-batches on the CPU."""

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

MAX_FREE = 2
"""Arrays that nobody holds and that are kept for later; a loop that drops one micro-batch for the next needs one."""


def send(array: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Copy a small array to the device without waiting for what the device still has to do; tensors stay. A GPU copies
    from pinned memory meanwhile; a copy from other memory would wait for all that was queued before it."""
    if isinstance(array, Tensor):
        return array
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class CopyStream:
    """Copies arrays in pinned memory to a GPU beside what it computes, on a stream of their own.

    Mixing and normalising stay on the main stream: the host is ahead of the device, so their few calls are queued
    before it comes to them, and beside a shard's gathers kernels of a second stream would compete for its memory. By
    arithmetic there is little to hide: 256 images of 224 pixels are 0.3 GB of reads and writes, 0.1 ms of an H100's
    memory, beside some 30 ms for the step of the smallest pair.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def copy(self, values: np.ndarray) -> tuple[Tensor, torch.cuda.Event]:
        """Queue a copy; what is queued on the current stream from now on waits for it, and the event tells when it is
        done and the array may be overwritten."""
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            tensor = torch.from_numpy(values).to(self._device, non_blocking=True)
        copied = self._stream.record_event()
        current.wait_event(copied)
        tensor.record_stream(current)  # or its memory would be used anew while the current stream reads it
        return tensor, copied


class RecycledMemory:
    """Copies arrays into tensors on the CPU, in memory of earlier copies that nobody holds any more.

    The system gives fresh memory of this size back to the kernel and gets it again, zeroed, page by page, which costs
    up to a tenth of the decoding. A tensor, and all that share its memory, hold the view that it was made from; when
    that ends, its array is free. The free arrays that were used last stay; the others return to the system.
    """

    def __init__(self):
        self._free: deque[np.ndarray] = deque(maxlen=MAX_FREE)

    def copy(self, values: np.ndarray) -> Tensor:
        """Copy the values into a tensor of their own."""
        array = self._take(values)
        np.copyto(array, values)
        view = array[...]
        weakref.finalize(view, self._free.append, array).atexit = False
        return torch.from_numpy(view)

    def _take(self, values: np.ndarray) -> np.ndarray:
        """The free array of this shape and type that was used last, or a new one."""
        for _ in range(len(self._free)):  # no iterator: whoever drops a tensor, in any thread, adds to it meanwhile
            array = self._free.pop()
            if array.shape == values.shape and array.dtype == values.dtype:
                return array
            self._free.appendleft(array)
        return np.empty_like(values)
