"""Let the ranks agree: the collectives of the project, and the one way to learn that another rank failed.

Every function that communicates says "Collective": all ranks must call it, the same number of times. Without a process
group (the commands eval and export) there is one rank, and nothing is sent.
"""

from typing import Any, Callable, TypeVar, cast

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed._functional_collectives import all_gather_single_autograd, wait_tensor

T = TypeVar("T")


class FailedElsewhere(RuntimeError):
    """Another rank failed; `together` raises it on the ranks on which nothing did."""


class RefusedElsewhere(FailedElsewhere, ValueError):
    """Another rank refused what it was given, so no start of the same command would go further."""


def is_running() -> bool:
    """Whether a process group exists."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def rank() -> int:
    """This process's number, 0 without a process group."""
    return torch_dist.get_rank() if is_running() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return torch_dist.get_world_size() if is_running() else 1


def barrier() -> None:
    """Wait for all ranks. Collective."""
    if is_running():
        torch_dist.barrier()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum `tensor` over the ranks, in place. Collective."""
    if is_running():
        torch_dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor) -> Tensor:
    """Give every rank the `tensor` of rank 0, in place. Collective."""
    if is_running():
        torch_dist.broadcast(tensor, src=0)
    return tensor


def gather(values: Tensor) -> Tensor:
    """Join a tensor [B, ...] of each rank along its first axis, in the order of the ranks. Collective, and its backward
    pass, in which an element gets the sum of its gradients on all ranks, too."""
    if world_size() == 1:
        return values
    everyone = cast(torch_dist.ProcessGroup, torch_dist.group.WORLD)
    return wait_tensor(all_gather_single_autograd(values.contiguous(), gather_dim=0, group=everyone))


def all_true(flag: bool | Tensor, device: torch.device) -> bool:
    """Whether `flag` holds on every rank. Collective; waits for the device."""
    agreed = torch.tensor(float(flag), device=device)
    if is_running():
        torch_dist.all_reduce(agreed, op=torch_dist.ReduceOp.MIN)
    return bool(agreed)


def from_main(value: T) -> T:
    """Rank 0's `value` (picklable), on every rank. Collective."""
    box = [value]
    if is_running():
        torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """Every rank's `value` (picklable), in order of rank, on every rank. Collective."""
    values = [value] * world_size()
    if is_running():
        torch_dist.all_gather_object(values, value)
    return values


def on_main(function: Callable[[], T]) -> T:
    """Call `function` on rank 0; return its result, or raise its exception, on every rank. Collective."""
    result, error = from_main(_outcome(function) if rank() == 0 else (None, None))
    if error is not None:
        raise error
    return cast(T, result)


def together(function: Callable[[], T]) -> T:
    """Call `function` on every rank; what it raises on one rank is raised on all. Collective.

    Raises:
        RefusedElsewhere: other ranks only raised, and each a ValueError; the message quotes them.
        FailedElsewhere: it failed on another rank only, in another way.
    """
    result, error = _outcome(function)
    if failed := _failures(error):
        is_refused = all(from_all(error is None or isinstance(error, ValueError)))
        raise error or (RefusedElsewhere if is_refused else FailedElsewhere)("; ".join(failed))
    return cast(T, result)


def failures(function: Callable[[], Any]) -> list[str]:
    """Call `function` on every rank; list what it raised, as "rank 1: OSError: ...", alike on all ranks. Collective.

    For work that may fail on some ranks and that the run survives, such as a checkpoint on a full disk.
    """
    return _failures(_outcome(function)[1])


def _outcome(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    """The result, or the exception as a value: a rank must tell the others before it raises, or they wait for it."""
    try:
        return function(), None
    except Exception as error:  # any kind: DeepSpeed raises what pickle, zip or the file system raise
        return None, error


def _failures(error: Exception | None) -> list[str]:
    texts = from_all(f"{type(error).__name__}: {error}" if error else "")
    return [f"rank {number}: {text}" for number, text in enumerate(texts) if text]
