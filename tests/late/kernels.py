"""Operations on device tensors as kernels, queued on the current stream of a simulated device.

A device tensor is an ordinary CPU tensor whose memory belongs to `Memory`. Every operation is computed by torch's CPU
code, but not before the device's `Order` runs it. A kernel holds addresses: it reads and writes whatever the memory
contains when the kernel runs. Shapes are known at once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.late.memory import Memory
from tests.late.streams import Order

aten = torch.ops.aten
READING = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)
"""Operations that return a Python value, so the host waits for the current stream."""
RELABELLING = (
    aten.set_.source_Tensor,
    aten.set_.source_Storage,
    aten.set_.source_Storage_storage_offset,
    aten.resize_.default,
)
"""Operations that change a tensor's shape or memory on the host, without a kernel."""
INDEXING = (aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default)
"""Operations that accept host tensors as indices; torch copies them and waits."""
FAKE = FakeTensorMode()
_shapes: dict[Any, Any] = {}
"""Results of operations as meta tensors, by operation and arguments; equal on all devices."""


@contextmanager
def plainly() -> Iterator[None]:
    """Compute at once, on the memory as it is now."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def leaves_of(values: Any) -> list[Any]:
    """Return the leaves of nested lists, tuples and dicts; several times faster than torch's pytree."""
    if isinstance(values, dict):
        values = list(values.values())
    if not isinstance(values, (list, tuple)):
        return [values]
    leaves = []
    for value in values:
        leaves += leaves_of(value) if isinstance(value, (list, tuple, dict)) else [value]
    return leaves


def tensors_in(values: Any) -> list[Tensor]:
    """Return all tensors in nested arguments."""
    return [leaf for leaf in leaves_of(values) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """Replace all tensors in nested lists, tuples and dicts by the results of a function."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, (list, tuple)):
        return type(values)([map_tensors(function, value) for value in values])
    if isinstance(values, dict):
        return {key: map_tensors(function, value) for key, value in values.items()}
    return values


@cache
def makes_tensors(func: Any) -> bool:
    """Return whether an operation has an argument for the device of its result."""
    return any(argument.name == "device" for argument in func._schema.arguments)


@cache
def is_view(func: Any) -> bool:
    """Return whether an operation returns only views."""
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info and not value.alias_info.is_write for value in returns)


@cache
def written_by(func: Any) -> list[str]:
    """Return the names of the arguments that an operation writes to."""
    return [
        argument.name for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write
    ]


class Kernels(TorchDispatchMode):
    """Mode that queues each operation on device tensors.

    Attributes:
        is_new_on_device: whether new tensors are on the device if that does not follow from the arguments.
        target: explicitly requested place of a new tensor: True for the device, False for the host, None for neither.
        num_kernels: number of kernels and copies that were queued.
    """

    def __init__(self, memory: Memory, order: Order) -> None:
        super().__init__()
        self.memory = memory
        self.order = order
        self.is_new_on_device = False
        self.target: bool | None = None
        self.num_kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run or queue one operation."""
        kwargs = kwargs or {}
        target, self.target = self.target, None
        with torch._C.DisableTorchFunction():
            return self._call(func, args, kwargs, target)

    def _call(self, func: Any, args: Any, kwargs: Any, target: bool | None) -> Any:
        tensors = tensors_in((args, kwargs))
        if any(tensor.is_meta for tensor in tensors) or str(kwargs.get("device")) == "meta":
            return func(*args, **kwargs)
        on_device = [self.memory.holds(tensor) for tensor in tensors]
        if makes_tensors(func):
            is_new_on_device = (any(on_device) or self.is_new_on_device and not tensors) if target is None else target
            if func is aten._to_copy.default and (is_new_on_device or any(on_device)):
                return self._copied(args[0], kwargs, is_new_on_device)
            return self._launch(func, args, kwargs) if is_new_on_device else func(*args, **kwargs)
        if not any(on_device):
            return func(*args, **kwargs)
        if func.namespace == "c10d":
            return self._communicate(func, args, kwargs)
        if func in READING:
            self.order.current.synchronize()
            return func(*args, **kwargs)
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if is_view(func) or func in RELABELLING:
            return func(*args, **kwargs)
        self._check_places(func, tensors, on_device)
        return self._launch(func, args, kwargs)

    @staticmethod
    def _check_places(func: Any, tensors: list[Tensor], on_device: list[bool]) -> None:
        hosts = [tensor for tensor, is_device in zip(tensors, on_device) if not is_device]
        if func not in INDEXING and any(tensor.dim() for tensor in hosts):
            raise RuntimeError(f"{func} got tensors on the device and on the host: {[t.shape for t in hosts]}")

    # ------------------------------------------------------------------------------------------------- kernels

    def _launch(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Queue an operation and return its results, whose memory is not written yet."""
        written = []
        if names := written_by(func):
            named = dict(zip([argument.name for argument in func._schema.arguments], args)) | kwargs
            written = [named[name] for name in names if name in named]
        if written and any(value.alias_info is None for value in func._schema.returns):
            raise NotImplementedError(f"{func} writes to an argument and returns a new tensor")
        at_args, at_kwargs = map_tensors(self._argument, (args, kwargs))
        results: Any = written[0] if len(func._schema.returns) == 1 and written else tuple(written) or None
        places: list[Tensor] = []
        if not written:
            try:
                shapes = self._shapes_of(func, args, kwargs)
            except (DataDependentOutputException, DynamicOutputShapeException):
                return self._wait_and_compute(func, at_args, at_kwargs)
            stream = self.order.current
            results = map_tensors(lambda like: self.memory.empty(like, stream), shapes)
            places = [self.memory.address(result) for result in tensors_in(results)]
        elif not func._schema.returns:
            results = None
        state = self._reserve_random_numbers(func, args, kwargs)
        self._push(lambda: run(func, at_args, at_kwargs, places, state))
        return results

    def _push(self, run: Any) -> None:
        self.num_kernels += 1

        def work() -> None:
            with plainly():
                run()

        self.order.current.push(work)

    def _argument(self, tensor: Tensor) -> Tensor:
        """Return a kernel's argument: an address on the device, or the value of a host tensor."""
        return self.memory.address(tensor) if self.memory.holds(tensor) else tensor.detach().clone()

    def _shapes_of(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return the results of an operation as meta tensors."""

        def described(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.dtype, value.shape, value.stride()
            return type(value), str(value)

        lengths = [len(value) if isinstance(value, (list, tuple)) else None for value in args]
        key = func, tuple(map(described, leaves_of((args, kwargs)))), tuple(lengths), tuple(kwargs)
        if key not in _shapes:

            def like(tensor: Tensor) -> Tensor:
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)

            def meta(tensor: Tensor) -> Tensor:
                return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

            with FAKE:
                results = func(*map_tensors(like, args), **map_tensors(like, kwargs))
            _shapes[key] = map_tensors(meta, results)
        return _shapes[key]

    def _wait_and_compute(self, func: Any, at_args: Any, at_kwargs: Any) -> Any:
        """Compute an operation whose result's shape depends on values; the host waits for the current stream."""
        self.order.current.synchronize()

        def moved(value: Tensor) -> Tensor:
            result = self.memory.empty(value, self.order.current)
            self.memory.address(result).copy_(value)
            return result

        return map_tensors(moved, func(*at_args, **at_kwargs))

    def _reserve_random_numbers(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """Advance torch's generator as the operation will, and return the state to compute it with.

        A GPU, too, decides at the launch of a kernel which random numbers it will use.
        """
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return None
        state = torch.get_rng_state()
        func(*map_tensors(torch.zeros_like, args), **map_tensors(torch.zeros_like, kwargs))
        return state

    # -------------------------------------------------------------------------------------------------- copies

    def _copied(self, source: Tensor, options: dict[str, Any], is_new_on_device: bool) -> Tensor:
        """Return a copy on the device or the host. A copy to the host that does not wait is in pinned memory."""
        options = dict(options)
        is_async = options.pop("non_blocking", False)
        like = self._shapes_of(aten._to_copy.default, (source,), options)
        if is_new_on_device:
            copy = self.memory.empty(like, self.order.current)
        else:
            copy = self.memory.empty_pinned(like) if is_async else torch.empty_like(like, device="cpu")
        return self._copy(copy, source, is_async)

    def _copy(self, to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        """Queue a copy.

        Within the device, the host never waits. To or from the host, it waits unless `non_blocking` is set. Then a copy
        from or to pinned memory accesses the host's memory when it runs. Without pinned memory, the host's values are
        read at once, and a copy to the host waits.
        """
        places = [self.memory.holds(tensor) for tensor in (to, source)]
        if not any(places):
            return to.copy_(source)
        host = None if all(places) else source if places[0] else to
        is_pinned = host is not None and self.memory.is_pinned(host)
        from_, into = self.memory.address(source), self.memory.address(to)
        if host is source and not is_pinned:
            from_ = source.detach().clone()
        self._push(lambda: into.copy_(from_))
        if host is not None and not (non_blocking and (is_pinned or host is source)):
            self.order.current.synchronize()
        return to

    def _communicate(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Queue a collective of a single rank on the current stream: its outputs become its inputs.

        NCCL computes on a stream of its own, but makes it wait for the current stream and the current stream wait for
        it, unless the caller asks for an asynchronous operation.
        """
        names = [argument.name for argument in func._schema.arguments]
        named = dict(zip(names, args)) | kwargs
        outputs = tensors_in([value for name, value in named.items() if "output" in name])
        inputs = tensors_in([value for name, value in named.items() if "input" in name])
        for output, value in zip(outputs, inputs, strict=True):
            self._copy(output.view(value.shape), value)
        hosts = map_tensors(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype), (args, kwargs))
        result = func(*hosts[0], **hosts[1])
        given = iter(tensors_in(args))
        return map_tensors(lambda _: next(given), result)


def run(func: Any, args: Any, kwargs: Any, places: list[Tensor], state: Tensor | None) -> None:
    """Compute an operation, and write its results to their places."""
    before = None
    if state is not None:
        before = torch.get_rng_state()
        torch.set_rng_state(state)
    results = func(*args, **kwargs)
    for place, result in zip(places, tensors_in(results)):
        place.copy_(result)
    if before is not None:
        torch.set_rng_state(before)
