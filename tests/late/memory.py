"""Memory of the simulated device, with the rules of torch's caching allocator.

A tensor's memory belongs to the stream that was current when the tensor was created. When the tensor is gone, the next
tensor of that stream with the same size gets the memory, even if queued kernels still use it. Only streams that were
named by `record_stream` delay this, until they have done the work that was queued when the tensor was freed.
"""

import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.late.streams import Moment, Stream

GARBAGE = 0xA5
"""Content of memory that was never used. As bf16 or fp32 it is about -3e-16, as int64 a large negative number."""
ALIGNMENT = 16
"""Sizes are multiples of this number of bytes, so that the memory can hold any dtype."""


def size_of(like: Tensor) -> int:
    """Return the number of bytes of memory for a tensor of this shape, strides and dtype."""
    last = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride())) if like.numel() else 0
    return -(-like.element_size() * (last + 1) // ALIGNMENT) * ALIGNMENT


@dataclass
class Block:
    """Memory of one tensor and its views."""

    bytes_N: np.ndarray
    stream: Stream
    users: list[Stream] = field(default_factory=list)
    """Streams named by `record_stream`."""


class Freed(NamedTuple):
    """Memory that may be reused once all moments are past."""

    bytes_N: np.ndarray
    moments: list[Moment]


class Memory:
    """Allocator of device memory, and register of pinned host memory.

    Attributes:
        num_reused: number of tensors that got memory of an earlier tensor.
        reserved: for each stream and size in bytes (see `size_of`), the number of tensors for which there is memory.
    """

    def __init__(self) -> None:
        self.num_reused = 0
        self.reserved: dict[tuple[Stream, int], int] = defaultdict(int)
        self._used: dict[int, Block] = {}
        self._freed: dict[tuple[Stream, int], list[Freed]] = defaultdict(list)
        self._pinned: dict[object, range] = {}

    def empty(self, like: Tensor, stream: Stream) -> Tensor:
        """Return an uninitialized tensor of the shape, strides and dtype of another."""
        bytes_N = self._take(size_of(like), stream)
        view_N = bytes_N[...]
        block = Block(bytes_N, stream)
        self._used[bytes_N.ctypes.data] = block
        weakref.finalize(view_N, self._free, block).atexit = False
        return torch.from_numpy(view_N).view(like.dtype).as_strided(like.shape, like.stride(), 0)

    def _take(self, size: int, stream: Stream) -> np.ndarray:
        freed = self._freed[stream, size]
        for place in reversed(range(len(freed))):  # the most recently freed memory first
            if all(moment.is_past for moment in freed[place].moments):
                self.num_reused += 1
                return freed.pop(place).bytes_N
        self.reserved[stream, size] += 1
        return np.full(size, GARBAGE, np.uint8)

    def _free(self, block: Block) -> None:
        del self._used[block.bytes_N.ctypes.data]
        key = block.stream, len(block.bytes_N)
        self._freed[key].append(Freed(block.bytes_N, [stream.now for stream in block.users]))

    def holds(self, tensor: Tensor) -> bool:
        """Return whether a tensor is on the device."""
        return tensor.untyped_storage().data_ptr() in self._used

    def record_stream(self, tensor: Tensor, stream: Stream) -> None:
        """Delay the reuse of a tensor's memory until a stream has done its work."""
        block = self._used[tensor.untyped_storage().data_ptr()]
        if stream is not block.stream:
            block.users.append(stream)

    def address(self, tensor: Tensor) -> Tensor:
        """Return a tensor at the same address that does not keep device memory in use, as a kernel's argument."""
        if not self.holds(tensor):
            return tensor.detach()
        bytes_N = self._used[tensor.untyped_storage().data_ptr()].bytes_N
        whole = torch.from_numpy(bytes_N).view(tensor.dtype)
        return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def pin(self, array: np.ndarray) -> None:
        """Register an array's memory as pinned, until the array is gone."""
        key = object()
        self._pinned[key] = range(array.ctypes.data, array.ctypes.data + array.nbytes)
        weakref.finalize(array, self._pinned.pop, key).atexit = False

    def is_pinned(self, tensor: Tensor) -> bool:
        """Return whether a tensor is in pinned host memory."""
        address = tensor.data_ptr()
        return any(address in addresses for addresses in [*self._pinned.values()])

    def empty_pinned(self, like: Tensor) -> Tensor:
        """Return an uninitialized tensor of the shape, strides and dtype of another in pinned host memory.

        A queued copy keeps its host tensor in use, as torch's allocator of pinned memory does.
        """
        bytes_N = np.full(size_of(like), GARBAGE, np.uint8)
        self.pin(bytes_N)
        return torch.from_numpy(bytes_N).view(like.dtype).as_strided(like.shape, like.stride(), 0)
