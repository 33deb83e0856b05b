"""The simulated device: a context in which torch and DeepSpeed compute on "cuda:0", which is CPU memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.optim import Optimizer

from tests.late.kernels import Kernels, plainly, tensors_in
from tests.late.memory import Memory
from tests.late.names import NAME, Names
from tests.late.streams import Event, Order, Stream
from vitkd_ds.models.normalization import _cached_affine


class Device:
    """A simulated device, from `late_device`."""

    def __init__(self, seed: int, eager: float) -> None:
        self.order = Order(seed, eager)
        self.memory = Memory()
        self.kernels = Kernels(self.memory, self.order)

    def stream(self) -> Stream:
        """Return a new stream."""
        return Stream(self.order)

    def pinned(self, array: np.ndarray) -> np.ndarray:
        """Register an array's memory as pinned and return the array."""
        self.memory.pin(array)
        return array

    def read(self, tensor: Tensor) -> Tensor:
        """Run all queued work, and return a tensor's value on the host."""
        self.order.synchronize()
        with plainly():
            return tensor.detach().clone()


@contextmanager
def late_device(seed: int, *, eager: float | None = None) -> Iterator[Device]:
    """Replace CUDA by a new simulated device, for torch and for DeepSpeed's accelerator.

    Args:
        seed: seed of the order in which work runs.
        eager: probability that queued work runs although nothing waits for it; None depends on the seed.
    """
    device = Device(seed, (0.0, 0.3, 0.8)[seed % 3] if eager is None else eager)
    with ExitStack() as stack:
        _cached_affine.cache_clear()  # its tensors are on an earlier device
        stack.callback(_cached_affine.cache_clear)
        names = Names(device.kernels)
        backward = partial(names.run_backward, torch.autograd._engine_run_backward)
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", backward))
        for patch in (*_cuda(device), *_deepspeed(device), *_saving(device)):
            stack.enter_context(patch)
        stack.enter_context(device.kernels)
        stack.enter_context(names)
        yield device


def _cuda(device: Device) -> list[Any]:
    """Return patches of torch's functions for CUDA."""
    order = device.order
    replaced = {
        "Stream": lambda *_, **__: device.stream(),
        "Event": lambda **options: Event(order, **options),
        "stream": order.on,
        "current_stream": lambda *_: order.current,
        "default_stream": lambda *_: order.default,
        "synchronize": lambda *_: order.synchronize(),
    }
    group = Optimizer._group_tensors_by_device_and_dtype

    def grouped(*args: Any, **options: Any) -> Any:
        # C++ code groups the tensors, so it does not see the device's name.
        return {(NAME, dtype): tensors for (_, dtype), tensors in group(*args, **options).items()}

    patches = [mock.patch.object(torch.cuda, name, value) for name, value in replaced.items()]
    patches.append(mock.patch.object(Tensor, "record_stream", lambda *args: device.memory.record_stream(*args)))
    return [*patches, mock.patch.object(Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped))]


def _deepspeed(device: Device) -> list[Any]:
    """Return patches of DeepSpeed's accelerator, which stays the CPU's; gloo still connects the ranks."""
    order = device.order
    replaced = {
        "is_synchronized_device": lambda self: False,
        "use_host_timers": lambda self: False,
        "resolves_data_dependency": lambda self: False,
        "handles_memory_backpressure": lambda self: False,
        "device_name": lambda self, index=None: NAME.type if index is None else str(NAME),
        "current_device_name": lambda self: str(NAME),
        "current_device": lambda self: NAME.index,
        "device_count": lambda self: 1,
        "memory_stats": lambda self: {"active_bytes.all.peak": 0},  # no test reads the peak
        "Stream": property(lambda self: lambda *_, **__: device.stream()),
        "Event": property(lambda self: lambda **options: Event(order, **options)),
        "stream": lambda self, stream: order.on(stream),
        "current_stream": lambda self, *_: order.current,
        "default_stream": lambda self, *_: order.default,
        "synchronize": lambda self, *_: order.synchronize(),
        "on_accelerator": lambda self, tensor: device.memory.holds(tensor),
        "pin_memory": lambda self, tensor, *_: tensor.pin_memory(),
        "is_pinned": lambda self, tensor: tensor.is_pinned(),
    }
    return [mock.patch.object(type(get_accelerator()), name, value) for name, value in replaced.items()]


def _saving(device: Device) -> list[Any]:
    """Return a patch of torch.save, which copies storages without an operation: it waits for the current stream."""
    save = torch.save

    def waiting(content: Any, *args: Any, **options: Any) -> None:
        if any(map(device.memory.holds, tensors_in(content))):
            device.order.current.synchronize()
        with plainly():
            save(content, *args, **options)

    return [mock.patch.object(torch, "save", waiting)]
