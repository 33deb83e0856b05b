"""Ranks and the few collectives of the project: the only module that imports torch.distributed.

Every function that communicates says so: all ranks must call it, the same number of times. With one process the
collectives are skipped only where no process group exists (the console commands eval and export).
"""

import os
import re
import socket
import subprocess
import sys
from typing import Any, Callable, Mapping, MutableMapping, NoReturn, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor

T = TypeVar("T")


class FailedElsewhere(RuntimeError):
    """Raised by `together` on the ranks where nothing failed."""


SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}


def set_rank_variables(environ: MutableMapping[str, str] = os.environ) -> None:
    """Complete RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which DeepSpeed wants all set.

    `deepspeed` and `torchrun` set them; under `srun` they are taken from SLURM_*; a plain `python train.py` becomes one
    rank with a free port, so that DeepSpeed does not look for mpi4py.

    Raises:
        ValueError: some are set and others cannot be known.
    """
    # SLURM_STEP_ID is what srun sets for its tasks; the batch script itself has SLURM_PROCID too.
    if "RANK" not in environ and "SLURM_STEP_ID" in environ and int(environ["SLURM_NTASKS"]) > 1:
        environ.update({name: environ[slurm] for name, slurm in SLURM_NAMES.items()})
        environ.setdefault("MASTER_PORT", str(20000 + int(environ["SLURM_JOB_ID"]) % 12000))
        if "MASTER_ADDR" not in environ:
            environ["MASTER_ADDR"] = _first_slurm_node(environ["SLURM_STEP_NODELIST"])
    if "RANK" not in environ:
        environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
        environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()})
    missing = [name for name in (*SLURM_NAMES, "MASTER_ADDR", "MASTER_PORT") if name not in environ]
    if missing:
        raise ValueError(
            f"RANK is set, so {', '.join(missing)} must be set too, found nothing: start with deepspeed, torchrun or "
            "slurm/*.sh, or set them in the environment"
        )


def choose_device(num_devices: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Make LOCAL_RANK the number of this rank's device, as DeepSpeed takes it for that.

    It is already, unless Slurm shows each task its own device alone (`--gpus-per-task=1`): that is number 0.

    Raises:
        ValueError: fewer devices than ranks.
    """
    local_rank = int(environ["LOCAL_RANK"])
    if num_devices == 1 and environ.get("SLURM_GPUS_PER_TASK"):
        environ["LOCAL_RANK"] = "0"
    elif local_rank >= num_devices:
        raise ValueError(
            f"LOCAL_RANK must be below the number of visible GPUs, found {local_rank} and {num_devices} "
            f"(CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '')}): start as many ranks per node as it has "
            "GPUs"
        )


def _first_slurm_node(nodelist: str) -> str:
    """The address that Slurm itself reaches the step's first node by; a node's name need not resolve."""
    name = _scontrol("hostnames", nodelist).split()[0]
    address = re.search(r"NodeAddr=(\S+)", _scontrol("node", name))
    return address.group(1) if address else name


def _scontrol(*words: str) -> str:
    try:
        return subprocess.run(["scontrol", "show", *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"under srun MASTER_ADDR must be set where scontrol cannot tell the first node, found {error}: use "
            "slurm/*.sh, or set it"
        ) from error


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Ranks on this node, from torchrun's, DeepSpeed's or Slurm's variable; else all ranks."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    # "2(x3),1": two tasks on each of three nodes, one on the fourth.
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in groups for _ in range(int(times or 1))]
    node = int(environ.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else int(environ.get("WORLD_SIZE", "1"))


def num_cpus(environ: Mapping[str, str] = os.environ) -> int:
    """CPUs for this rank: what Slurm gave the task, else an equal share of those that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return max(1, min(allowed, int(environ["SLURM_CPUS_PER_TASK"])))
    return max(1, allowed // local_world_size(environ))


def is_running() -> bool:
    """True once a process group exists."""
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


def all_true(flag: bool | Tensor, device: torch.device) -> bool:
    """Whether `flag` holds on every rank. Collective; waits for the device."""
    agreed = torch.tensor(float(flag), device=device)
    if is_running():
        torch_dist.all_reduce(agreed, op=torch_dist.ReduceOp.MIN)
    return bool(agreed)


def from_main(value: Any) -> Any:
    """Rank 0's `value` (picklable), on every rank. Collective."""
    box = [value]
    if is_running():
        torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """Every rank's `value` (picklable), in order of rank, on every rank. Collective."""
    values = [value] * world_size()
    if is_running():
        torch_dist.all_gather_object(values, value)
    return values


def exchange(sent: Tensor, received: Tensor, peer: int) -> None:
    """Send a tensor to rank `peer` and receive one from it, at once; `peer` calls it too, and no other rank.

    Over NCCL the communicator of all ranks is used, which an earlier collective must have made; a communicator for
    each pair would cost memory and a second each.
    """
    operations = [torch_dist.P2POp(torch_dist.isend, sent, peer), torch_dist.P2POp(torch_dist.irecv, received, peer)]
    for work in torch_dist.batch_isend_irecv(operations):
        work.wait()


def together(function: Callable[[], T], device: torch.device) -> T:
    """Call `function` on every rank; what it raises on one rank is raised on all. Collective."""
    try:
        result, error = function(), None
    except Exception as caught:  # any kind: the others must not wait for this rank
        result, error = None, caught
    if not all_true(error is None, device):
        raise error or FailedElsewhere("another rank failed, its message says why")
    return result


def leave() -> NoReturn:
    """End this process with exit code 0, after everything is written.

    Not sys.exit: threads of gloo or FFCV that are still there sometimes abort an interpreter that is ending (SIGABRT,
    "terminate called without an active exception"), and a launcher would report a finished run as failed.
    """
    shut_down()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def shut_down() -> None:
    """Destroy the process group, so that the interpreter ends without a warning."""
    if is_running():
        torch_dist.destroy_process_group()
