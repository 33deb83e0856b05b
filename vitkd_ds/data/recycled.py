"""Memory for micro-batches on the CPU that is used again once nobody holds the micro-batch any more."""

import sys

import numpy as np
import torch

MAX_FREE = 2
"""Arrays that nobody holds and that are kept for later; a loop that drops one micro-batch for the next needs one."""


class RecycledMemory:
    """Copies arrays into tensors.

    The system gives fresh memory of this size back to the kernel and gets it again, zeroed, page by page; that costs as
    much as a tenth of the decoding. A tensor that shares memory with an array holds a reference to it, so an array
    that only this object refers to is free. Of those found free a few stay, the last ones used; the others are given
    back to the system.
    """

    def __init__(self):
        self._arrays: list[np.ndarray] = []

    def copy(self, values: np.ndarray) -> torch.Tensor:
        """A tensor of its own with these values."""
        is_free = _are_free(self._arrays)
        free = [array for array, free in zip(self._arrays, is_free) if free]
        held = [array for array, free in zip(self._arrays, is_free) if not free]
        fitting = [i for i, array in enumerate(free) if array.shape == values.shape and array.dtype == values.dtype]
        array = free.pop(fitting[-1]) if fitting else np.empty_like(values)
        self._arrays = [*free[-MAX_FREE:], *held, array]
        np.copyto(array, values)
        return torch.from_numpy(array)


def _are_free(arrays: list[np.ndarray]) -> list[bool]:
    """Whether nothing but the list refers to each array."""
    return [sys.getrefcount(array) == _FREE for array in arrays]


def _count_of_free() -> int:
    """What `sys.getrefcount` says, in a comprehension as the one above, of an array that only the list holds."""
    arrays = [np.empty(0)]
    return [sys.getrefcount(array) for array in arrays][0]


_FREE = _count_of_free()
