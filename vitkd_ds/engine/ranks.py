"""Communication between ranks, and error handling across them.

A function marked "Collective" communicates, so all ranks must call it equally often and in the same order. Without a
process group (in the commands eval and export), there is one rank, and nothing is sent.
"""

from typing import Any, Callable, TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed._functional_collectives import wait_tensor

from vitkd_ds.engine.versions import all_gather_single_autograd

T = TypeVar("T")


class FailedElsewhere(RuntimeError):
    """Failure on another rank; `together` raises it on the ranks that did not fail."""


class RefusedElsewhere(FailedElsewhere, ValueError):
    """Invalid input on another rank, so rerunning the same command would fail again."""


def is_running() -> bool:
    """Return whether a process group exists."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """Return this process's rank, or 0 if there is no process group."""
    return torch_dist.get_rank() if is_running() else 0


def world_size() -> int:
    """Return the number of ranks, or 1 if there is no process group."""
    return torch_dist.get_world_size() if is_running() else 1


def barrier() -> None:
    """Wait for all ranks. Collective."""
    if is_running():
        torch_dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum `tensor` over the ranks, in place, and return it. Collective."""
    if is_running():
        torch_dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor) -> Tensor:
    """Copy rank 0's `tensor` to all ranks, in place, and return it. Collective."""
    if is_running():
        torch_dist.broadcast(tensor, src=0)
    return tensor


def gather(values: Tensor) -> Tensor:
    """Concatenate each rank's tensor [B, ...] along the first axis, in rank order. Collective, also in backward.

    In backward, an element gets the sum of its gradients over all ranks.
    """
    if world_size() == 1:
        return values
    everyone = cast(torch_dist.ProcessGroup, torch_dist.group.WORLD)
    return wait_tensor(all_gather_single_autograd(values.contiguous(), gather_dim=0, group=everyone))


def all_true(flag: bool | Tensor, device: torch.device) -> bool:
    """Return whether `flag` is true on every rank. Collective. The host waits for the device."""
    agreed = torch.tensor(float(flag), device=device)
    if is_running():
        torch_dist.all_reduce(agreed, op=torch_dist.ReduceOp.MIN)
    return bool(agreed)


def from_main(value: T) -> T:
    """Return rank 0's `value` (picklable) on every rank. Collective."""
    box = [value]
    if is_running():
        torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """Return all ranks' `value` (picklable) in rank order, on every rank. Collective."""
    values = [value] * world_size()
    if is_running():
        torch_dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T]) -> T:
    """Call `function` on rank 0, and return its result or raise its exception on every rank. Collective."""
    result, error = from_main(_outcome(function) if rank() == 0 else (None, None))
    if error is not None:
        raise error
    return cast(T, result)


def together(function: Callable[[], T]) -> T:
    """Call `function` on every rank and return its result; if it raises on one rank, raise on all. Collective.

    A failed rank raises its own exception. The other ranks raise an exception that quotes the exceptions of the failed
    ranks.

    Raises:
        RefusedElsewhere: this rank succeeded, and every failed rank raised a ValueError.
        FailedElsewhere: this rank succeeded, and at least one failed rank raised another kind of exception.
    """
    result, error = _outcome(function)
    if failed := _failures(error):
        is_refused = all(from_all(error is None or isinstance(error, ValueError)))
        raise error or (RefusedElsewhere if is_refused else FailedElsewhere)("; ".join(failed))
    return cast(T, result)


def failures(function: Callable[[], Any]) -> list[str]:
    """Call `function` on every rank and return all exceptions as texts like "rank 1: OSError: ...". Collective.

    The list is equal on all ranks. Use this function if the run can continue after a failure, such as a full disk.
    """
    return _failures(_outcome(function)[1])


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """Return (result, exception). The exception is not raised yet, because the other ranks must learn of it first."""
    try:
        return function(), None
    except Exception as error:  # DeepSpeed passes on errors of pickle, zip and the file system
        return None, error


def _failures(error: Exception | None) -> list[str]:
    texts = from_all(f"{type(error).__name__}: {error}" if error else "")
    return [f"rank {number}: {text}" for number, text in enumerate(texts) if text]
