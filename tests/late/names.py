"""Python names of the simulated device: its tensors say that they are on "cuda:0", and torch accepts that name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.late.kernels import Kernels, tensors_in

NAME = torch.device("cuda", 0)
HANDLERS: dict[Any, Callable[..., Any]] = {}
"""Functions of torch that `Names` replaces."""


def names_device(place: Any) -> bool:
    """Return whether a device argument names the simulated device."""
    return isinstance(place, (str, torch.device)) and torch.device(place).type == NAME.type


def replaces(*functions: Any) -> Callable[[Any], Any]:
    """Register a method of `Names` as the replacement of torch's functions."""

    def register(method: Any) -> Any:
        HANDLERS.update(dict.fromkeys(functions, method))
        return method

    return register


class Names(TorchFunctionMode):
    """Mode that translates the device's name for functions of torch, which only know CPU tensors."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.memory = kernels.memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch."""
        kwargs = kwargs or {}
        if func in HANDLERS:
            return HANDLERS[func](self, *args, **kwargs)
        if getattr(func, "__name__", "") in ("__get__", "__set__"):
            return func(*args, **kwargs)
        place = kwargs.get("device")
        if kwargs.get("pin_memory"):
            return self.memory.empty_pinned(func(*args, **kwargs | {"pin_memory": False, "device": "cpu"}))
        if place is None:
            with self._new(any(map(self.memory.holds, tensors_in((args, kwargs))))):
                return func(*args, **kwargs)
        kwargs = kwargs | {"device": "cpu"} if names_device(place) else kwargs
        with self._new(names_device(place), is_asked=True):
            return func(*args, **kwargs)

    @contextmanager
    def _new(self, is_on_device: bool, *, is_asked: bool = False) -> Iterator[None]:
        before = self.kernels.is_new_on_device
        self.kernels.is_new_on_device = is_on_device
        self.kernels.target = is_on_device if is_asked else None
        try:
            yield
        finally:
            self.kernels.is_new_on_device = before
            self.kernels.target = None

    @replaces(Tensor.device.__get__)
    def _device(self, tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            return NAME if self.memory.holds(tensor) else tensor.device

    @replaces(Tensor.is_cuda.__get__)
    def _is_cuda(self, tensor: Tensor) -> bool:
        return self.memory.holds(tensor)

    @replaces(Tensor.is_cpu.__get__)
    def _is_cpu(self, tensor: Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            return not self.memory.holds(tensor) and tensor.is_cpu

    @replaces(Tensor.to)
    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch._C.DisableTorchFunction():
            place, dtype, non_blocking, memory_format = torch._C._nn._parse_to(
                *(arg if not isinstance(arg, Tensor) else arg.dtype for arg in args),
                **{key: value for key, value in kwargs.items() if key != "copy"},
            )
        if args and isinstance(args[0], Tensor):
            place = args[0].device if not self.memory.holds(args[0]) else NAME
        return self._moved(tensor, place, dtype, non_blocking, kwargs.get("copy", False), memory_format)

    def _moved(
        self,
        tensor: Tensor,
        place: torch.device | None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: torch.memory_format | None = None,
    ) -> Tensor:
        is_here = self.memory.holds(tensor)
        is_wanted = is_here if place is None else names_device(place)
        is_meta = tensor.is_meta or (place is not None and place.type == "meta")
        with torch._C.DisableTorchFunction():
            if is_meta or (is_wanted == is_here and not copy and dtype in (None, tensor.dtype)):
                options = {"memory_format": memory_format} if memory_format else {}
                return tensor.to(dtype=dtype, device=place if is_meta else None, **options)
            with self._new(is_wanted, is_asked=True):
                options = {"memory_format": memory_format or torch.preserve_format}
                return torch.ops.aten._to_copy.default(tensor, dtype=dtype, non_blocking=non_blocking, **options)

    @replaces(Tensor.cpu)
    def _cpu(self, tensor: Tensor, **_options: Any) -> Tensor:
        return self._moved(tensor, torch.device("cpu"))

    @replaces(Tensor.cuda)
    def _cuda(self, tensor: Tensor, _device: Any = None, non_blocking: bool = False, **_options: Any) -> Tensor:
        return self._moved(tensor, NAME, non_blocking=non_blocking)

    @replaces(torch.tensor, torch.as_tensor)
    def _tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        if isinstance(data, Tensor):
            return self._moved(data, torch.device(device) if device is not None else None, dtype)
        made = torch.tensor(data, dtype=dtype, **options)
        return self._moved(made, NAME) if names_device(device) else made

    @replaces(Tensor.tolist)
    def _tolist(self, tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            return self._moved(tensor, torch.device("cpu")).tolist()

    @replaces(Tensor.numpy, Tensor.__array__)
    def _numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
        if self.memory.holds(tensor):
            raise TypeError("can't convert a tensor on the device to numpy")
        with torch._C.DisableTorchFunction():
            return tensor.numpy(*args, **kwargs)

    @replaces(Tensor.pin_memory)
    def _pin_memory(self, tensor: Tensor, *_args: Any) -> Tensor:
        return self.memory.empty_pinned(tensor).copy_(tensor)

    @replaces(Tensor.is_pinned)
    def _is_pinned(self, tensor: Tensor, *_args: Any) -> bool:
        return self.memory.is_pinned(tensor)

    def run_backward(self, run: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call torch's function that runs a backward pass, with this mode for the hooks, too."""
        with self, self._new(True):
            return run(*args, **options)
