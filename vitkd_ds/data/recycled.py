"""Memory for micro-batches on the CPU that is used again once nobody holds the micro-batch any more."""

import sys

import numpy as np
import torch


class RecycledMemory:
    """Copies arrays into tensors.

    The system gives fresh memory of this size back to the kernel and gets it again, zeroed, page by page; that costs as
    much as a tenth of the decoding. A tensor that shares memory with an array holds a reference to it, so an array
    that only this object refers to is free. As many stay as were held at a time.
    """

    def __init__(self):
        self._arrays: list[np.ndarray] = []

    def copy(self, values: np.ndarray) -> torch.Tensor:
        """A tensor of its own with these values."""
        array = next((a for a in self._arrays if sys.getrefcount(a) == _FREE and a.shape == values.shape), None)
        if array is None:
            array = np.empty_like(values)
            self._arrays.append(array)
        np.copyto(array, values)
        return torch.from_numpy(array)


def _count_of_free() -> int:
    """What `sys.getrefcount` says inside the generator above of an array that only the list holds."""
    arrays = [np.empty(0)]
    return next(sys.getrefcount(a) for a in arrays)


_FREE = _count_of_free()
