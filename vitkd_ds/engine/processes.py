"""Start and end the process group of a run, and assign each rank its device.

Launchers set different variables to tell a process its rank. This module translates them into the variables that
DeepSpeed reads. Only this module and `vitkd_ds.engine.ranks` import torch.distributed.
"""

import logging
import os
import re
import resource
import socket
import stat
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Mapping, MutableMapping, NoReturn

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from torch._inductor import config as inductor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from vitkd_ds.engine import ranks

DRIVER = Path("/proc/driver/nvidia/version")
"""Version file of NVIDIA's kernel driver; it exists only if the driver is loaded."""
LOOPBACK = ("127.0.0.1", "localhost")
SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
"""DeepSpeed's variable -> the variable that srun sets for each task. SLURM_NTASKS is not used, because it may count the
tasks of the whole job, or of another job (`srun --preserve-env`)."""


def set_rank_variables(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT if the launcher has not.

    `deepspeed` and `torchrun` set them. Under `srun`, they are derived from SLURM_*. Without a launcher (`python
    train.py`), they describe a single rank with a free port. If they were not set, DeepSpeed would look for mpi4py.

    Raises:
        ValueError: some of the variables are set, and the others cannot be derived.
    """
    # srun sets SLURM_STEP_ID only for its tasks; SLURM_PROCID is also set in the batch script itself.
    if "RANK" not in environ and "SLURM_STEP_ID" in environ and int(environ["SLURM_STEP_NUM_TASKS"]) > 1:
        environ.update({name: environ[slurm] for name, slurm in SLURM_NAMES.items()})
        environ.setdefault("MASTER_PORT", str(20000 + int(environ["SLURM_JOB_ID"]) % 12000))
        if environ.get("SLURM_STEP_NUM_NODES") == "1":
            environ.setdefault("MASTER_ADDR", LOOPBACK[0])  # unreachable from outside the node
        elif "MASTER_ADDR" not in environ:
            environ["MASTER_ADDR"] = _first_slurm_node(environ["SLURM_STEP_NODELIST"])
    if "RANK" not in environ:
        environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])})
    if missing := [name for name in (*SLURM_NAMES, "MASTER_ADDR", "MASTER_PORT") if name not in environ]:
        raise ValueError(
            f"RANK is set without {', '.join(missing)}. Start with deepspeed, torchrun or slurm/*.sh, or set all of "
            "these variables."
        )


def choose_device(num_devices: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set LOCAL_RANK to the index of this rank's device, because DeepSpeed uses LOCAL_RANK as the index.

    LOCAL_RANK changes only if each Slurm task sees just its own device (`--gpus-per-task=1`). The index is then 0.

    Raises:
        ValueError: the node has fewer devices than ranks.
    """
    local_rank = int(environ["LOCAL_RANK"])
    if num_devices == 1 and environ.get("SLURM_GPUS_PER_TASK"):
        environ["LOCAL_RANK"] = "0"
    elif local_rank >= num_devices:
        raise ValueError(
            f"LOCAL_RANK must be below the number of visible GPUs, got {local_rank} and {num_devices} "
            f"(CUDA_VISIBLE_DEVICES={environ.get('CUDA_VISIBLE_DEVICES', '')}). Start one rank per GPU."
        )


def read_memory_with_torch(accelerator: Any) -> None:
    """Let DeepSpeed's accelerator ask torch for the free memory of a CUDA device.

    DeepSpeed asks NVML, and reads the numbers of NVML's devices from CUDA_VISIBLE_DEVICES. The variable may have UUIDs
    instead, as for the slices of a partitioned GPU (MIG) and with some schedulers. NVML also counts other processes on
    a partitioned GPU.
    """
    if accelerator.device_name() == "cuda":
        accelerator.available_memory = lambda device_index=None: torch.cuda.mem_get_info(device_index)[0]


def _first_slurm_node(nodelist: str) -> str:
    """Ask Slurm for the address of the first node in `nodelist`, because the name of a node may not resolve."""

    def show(*words: str) -> str:
        return subprocess.run(["scontrol", "show", *words], capture_output=True, text=True, check=True).stdout

    try:
        name = show("hostnames", nodelist).split()[0]
        address = re.search(r"NodeAddr=(\S+)", show("node", name))
        return address.group(1) if address else name
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"MASTER_ADDR is not set, and scontrol cannot determine the first node: {error}. Start with slurm/*.sh, or "
            "set MASTER_ADDR."
        ) from error


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this node as set by torchrun, DeepSpeed or Slurm, or WORLD_SIZE if not set."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    # "2(x3),1": two tasks on each of three nodes, one on the fourth.
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in groups for _ in range(int(times or 1))]
    node = int(environ.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else int(environ.get("WORLD_SIZE", "1"))


def check_gpu_is_used(environ: Mapping[str, str] = os.environ, driver: Path = DRIVER) -> None:
    """Check that training does not silently use the CPU of a GPU node.

    Raises:
        ValueError: the node has a GPU that torch cannot use, and DS_ACCELERATOR does not choose the CPU.
    """
    signs = [f"{driver} exists"] if driver.exists() else []
    signs += [f"SLURM_JOB_GPUS={environ['SLURM_JOB_GPUS']}"] if environ.get("SLURM_JOB_GPUS") else []
    if signs and get_accelerator().device_name() == "cpu" and environ.get("DS_ACCELERATOR") != "cpu":
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        raise ValueError(
            f"this node has a GPU ({' and '.join(signs)}), but torch finds none ({built}). Install the torch build for "
            "this driver, check CUDA_VISIBLE_DEVICES, or set DS_ACCELERATOR=cpu to train on the CPU."
        )


def num_cpus(environ: Mapping[str, str] = os.environ) -> int:
    """Return this rank's number of CPUs: the CPUs of its Slurm task, or else its share of the node's usable CPUs."""
    allowed = len(os.sched_getaffinity(0))
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return max(1, min(allowed, int(environ["SLURM_CPUS_PER_TASK"])))
    return max(1, allowed // local_world_size(environ))


def check_code_folders(environ: Mapping[str, str] = os.environ) -> None:
    """Create the folders for compiled code, accessible only to this user, or check that existing ones are safe.

    The folders are TORCH_EXTENSIONS_DIR (DeepSpeed's extensions), if it is set, and inductor's cache, which by default
    has a predictable name in the temporary folder.

    Raises:
        ValueError: a folder is a link, belongs to another user, or can be written to or replaced by other users.
    """
    folders = [environ.get("TORCH_EXTENSIONS_DIR"), environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()]
    for folder in filter(None, folders):
        try:
            with suppress(FileExistsError):
                Path(folder).mkdir(mode=0o700, parents=True)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            found = os.fstat(descriptor)
            os.close(descriptor)
            above = os.stat(os.path.join(folder, ".."))
        except OSError as error:
            raise ValueError(f"{folder} cannot hold compiled code: {error}. Remove it.") from error
        # Anyone who can write to the parent folder could replace this one, unless the parent has the sticky bit.
        is_replaceable = above.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
        if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH or is_replaceable:
            owner = f"owner {found.st_uid}, mode {found.st_mode & 0o777:o}"
            raise ValueError(
                f"runs load code from {folder}, but other users can write to it or replace it ({owner}). Set "
                "TORCH_EXTENSIONS_DIR and TORCHINDUCTOR_CACHE_DIR to private folders."
            )


def start_processes(timeout_minutes: float = 10) -> torch.device:
    """Join the process group, with a timeout for its collectives, and return this rank's device. Collective."""
    set_rank_variables()
    check_code_folders()
    # Silence messages that users cannot act on. DeepSpeed calls our AdamW untested, because it compares the exact
    # class and ours is a subclass of torch's.
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed_logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce on first use. That takes a minute, and a killed build
        # leaves a lock that blocks all later launches forever. gloo computes the same sums.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_cpus())
    else:
        read_memory_with_torch(accelerator)
        choose_device(accelerator.device_count())
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    # Longer than the watchdog's timeout, so that the watchdog fires first: its message is better.
    timeout = timedelta(minutes=1.2 * timeout_minutes)
    is_alone = os.environ["MASTER_ADDR"] in LOOPBACK and "TORCHELASTIC_RUN_ID" not in os.environ  # torchrun has a store
    if is_alone and not ranks.is_running():
        _meet_on_loopback(timeout)
    deepspeed.init_distributed(verbose=False, timeout=timeout)
    return torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))


def _meet_on_loopback(timeout: timedelta) -> None:
    """Start the process group of a single-node run, listening only on the loopback interface. Collective.

    gloo, NCCL and torch's store have no authentication, and torch by default listens on all interfaces.
    """
    if "lo" in {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    is_main = rank == 0
    listener = socket.create_server((LOOPBACK[0], port)).detach() if is_main else None  # now owned by the store
    store = torch_dist.TCPStore(LOOPBACK[0], port, size, is_main, timeout, master_listen_fd=listener)
    backend = get_accelerator().communication_backend_name()
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def make_deterministic() -> None:
    """Make torch deterministic; operations without a deterministic algorithm raise RuntimeError.

    `warn_only=True` would not be enough, because torch would still use an attention backward that sums in arbitrary
    order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Filling uninitialized memory is a debugging aid that costs a pass over each new tensor.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    inductor.deterministic = True  # otherwise it picks kernels by timing, which varies


def device_name() -> str:
    """Return the name of this rank's GPU, or "cpu"."""
    accelerator = get_accelerator()
    return torch.cuda.get_device_name() if accelerator.device_name() == "cuda" else accelerator.device_name()


def peak_memory_gib() -> float:
    """Return the peak device memory since the start, in GiB; on a CPU, the peak resident memory of this process.

    Device memory includes tensors that were deleted but that queued kernels of another stream may still use. torch
    does not count them as allocated, but no other tensor can have their memory.
    """
    if get_accelerator().device_name() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return get_accelerator().memory_stats()["active_bytes.all.peak"] / 2**30


def synchronised_time() -> float:
    """Return a clock reading in seconds, after the device has finished all queued work."""
    get_accelerator().synchronize()
    return time.perf_counter()


def leave() -> NoReturn:
    """Exit immediately with code 0. All output must already be written.

    sys.exit is not safe: remaining threads of gloo or FFCV sometimes abort the interpreter's shutdown (SIGABRT,
    "terminate called without an active exception"), and the launcher would report a finished run as failed.
    """
    shut_down()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def shut_down() -> None:
    """Destroy the process group, so that the interpreter exits without a warning."""
    if ranks.is_running():
        torch_dist.destroy_process_group()
