"""Join the processes of a run, give each its device, and end them.

Launchers tell a rank in different variables who it is; here they become the ones that DeepSpeed reads. With
`vitkd_ds.engine.ranks`, which communicates, the only module that imports torch.distributed.
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
from typing import Mapping, MutableMapping, NoReturn

import deepspeed
import torch
import torch.distributed as torch_dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from torch._inductor import config as inductor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from vitkd_ds.engine import ranks

DRIVER = Path("/proc/driver/nvidia/version")
"""What NVIDIA's kernel driver says of itself, where there is one."""
LOOPBACK = ("127.0.0.1", "localhost")
SLURM_NAMES = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
"""Variables that srun sets for each task. SLURM_NTASKS may be the job's or another job's (`srun --preserve-env`)."""


def set_rank_variables(environ: MutableMapping[str, str] = os.environ) -> None:
    """Complete what `deepspeed` and `torchrun` set: RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.

    Under `srun` they are taken from SLURM_*. A plain `python train.py` becomes one rank with a free port, so that
    DeepSpeed does not look for mpi4py.

    Raises:
        ValueError: some are set and others cannot be known.
    """
    # SLURM_STEP_ID is what srun sets for its tasks; the batch script itself has SLURM_PROCID too.
    if "RANK" not in environ and "SLURM_STEP_ID" in environ and int(environ["SLURM_STEP_NUM_TASKS"]) > 1:
        environ.update({name: environ[slurm] for name, slurm in SLURM_NAMES.items()})
        environ.setdefault("MASTER_PORT", str(20000 + int(environ["SLURM_JOB_ID"]) % 12000))
        if environ.get("SLURM_STEP_NUM_NODES") == "1":
            environ.setdefault("MASTER_ADDR", LOOPBACK[0])  # which nobody outside the node can reach
        elif "MASTER_ADDR" not in environ:
            environ["MASTER_ADDR"] = _first_slurm_node(environ["SLURM_STEP_NODELIST"])
    if "RANK" not in environ:
        environ.update({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])})
    if missing := [name for name in (*SLURM_NAMES, "MASTER_ADDR", "MASTER_PORT") if name not in environ]:
        raise ValueError(
            f"RANK is set, so {', '.join(missing)} must be set too, found nothing: start with deepspeed, torchrun or "
            "slurm/*.sh, or set them in the environment"
        )


def choose_device(num_devices: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set LOCAL_RANK to the number of this rank's device, which is what DeepSpeed takes it for.

    The two differ only where Slurm shows each task its own device alone (`--gpus-per-task=1`): that one is number 0.

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
    """The address at which Slurm itself reaches the step's first node; a node's name need not resolve."""

    def show(*words: str) -> str:
        return subprocess.run(["scontrol", "show", *words], capture_output=True, text=True, check=True).stdout

    try:
        name = show("hostnames", nodelist).split()[0]
        address = re.search(r"NodeAddr=(\S+)", show("node", name))
        return address.group(1) if address else name
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"under srun MASTER_ADDR must be set where scontrol cannot tell the first node, found {error}: use "
            "slurm/*.sh, or set it"
        ) from error


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Number of ranks on this node by torchrun's, DeepSpeed's or Slurm's variable; else that of all ranks."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        if environ.get(name, "").isdigit():
            return int(environ[name])
    # "2(x3),1": two tasks on each of three nodes, one on the fourth.
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(count) for count, times in groups for _ in range(int(times or 1))]
    node = int(environ.get("SLURM_NODEID", "0"))
    return tasks[node] if node < len(tasks) else int(environ.get("WORLD_SIZE", "1"))


def check_gpu_is_used(environ: Mapping[str, str] = os.environ, driver: Path = DRIVER) -> None:
    """Check that a node with a GPU does not train on its CPU because torch cannot use the GPU.

    Raises:
        ValueError: it would.
    """
    signs = [f"{driver} exists"] if driver.exists() else []
    signs += [f"SLURM_JOB_GPUS={environ['SLURM_JOB_GPUS']}"] if environ.get("SLURM_JOB_GPUS") else []
    if signs and get_accelerator().device_name() == "cpu" and environ.get("DS_ACCELERATOR") != "cpu":
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        raise ValueError(
            f"training must use the GPU of this node ({' and '.join(signs)}), but torch finds none ({built}): install "
            "the torch build for this driver, check CUDA_VISIBLE_DEVICES, or set DS_ACCELERATOR=cpu to train on the CPU"
        )


def num_cpus(environ: Mapping[str, str] = os.environ) -> int:
    """Number of CPUs for this rank: those Slurm gave the task, else an equal share of those this process may use."""
    allowed = len(os.sched_getaffinity(0))
    if "SLURM_STEP_ID" in environ and environ.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return max(1, min(allowed, int(environ["SLURM_CPUS_PER_TASK"])))
    return max(1, allowed // local_world_size(environ))


def check_code_folders(environ: Mapping[str, str] = os.environ) -> None:
    """Make the folders private that hold code to load: DeepSpeed's extensions if TORCH_EXTENSIONS_DIR names a folder,
    and inductor's cache, which by default has a predictable name in the temporary folder.

    Raises:
        ValueError: a folder belongs to somebody else, others can write to it, or a link stands in its place.
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
            raise ValueError(f"{folder} must be a folder for compiled code, found {error}. Remove it.") from error
        # Who may write the folder above could put another in its place, if that has no sticky bit.
        is_replaceable = above.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH
        if found.st_uid not in (0, os.getuid()) or found.st_mode & stat.S_IWOTH or is_replaceable:
            owner = f"owner {found.st_uid}, mode {found.st_mode & 0o777:o}"
            raise ValueError(
                f"{folder} holds code that a run loads, and others can write to it or replace it ({owner}). Set "
                "TORCH_EXTENSIONS_DIR and TORCHINDUCTOR_CACHE_DIR to folders of your own."
            )


def start_processes(timeout_minutes: float = 10) -> torch.device:
    """Join the process group, whose collectives wait at most for the timeout; return this rank's device. Collective."""
    set_rank_variables()
    check_code_folders()
    # What DeepSpeed says at each start and no user can act on. Our AdamW is torch's, but its list of tested optimizers
    # goes by the exact class.
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed_logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # DeepSpeed would compile a shared-memory all-reduce at the first start. That takes a minute, and a killed build
        # leaves a lock on which every later start waits for ever. gloo computes the same sums.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(num_cpus())
    else:
        choose_device(accelerator.device_count())
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    # A little more than the timeout, so that the watchdog, whose message is better, comes first.
    timeout = timedelta(minutes=1.2 * timeout_minutes)
    is_alone = os.environ["MASTER_ADDR"] in LOOPBACK and "TORCHELASTIC_RUN_ID" not in os.environ  # torchrun's own store
    if is_alone and not ranks.is_running():
        _meet_on_loopback(timeout)
    deepspeed.init_distributed(verbose=False, timeout=timeout)
    return torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))


def _meet_on_loopback(timeout: timedelta) -> None:
    """Start the process group of ranks that share a node. They listen on its loopback only, as gloo, NCCL and torch's
    store ask nobody for a password; torch by default listens on every network. Collective."""
    if "lo" in {name for _, name in socket.if_nameindex()}:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    is_main = rank == 0
    listener = socket.create_server((LOOPBACK[0], port)).detach() if is_main else None  # the store's from here on
    store = torch_dist.TCPStore(LOOPBACK[0], port, size, is_main, timeout, master_listen_fd=listener)
    backend = get_accelerator().communication_backend_name()
    torch_dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def make_deterministic() -> None:
    """Let torch use only algorithms that give the same bits each time; an operation that has none raises RuntimeError.

    With `warn_only` torch would go on using a backward pass of attention that sums in any order.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # A debugging aid, which costs a pass over all memory.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False
    inductor.deterministic = True  # it would time kernels, and choose another one each time


def device_name() -> str:
    """The name of this rank's GPU, as its driver prints it, or cpu."""
    accelerator = get_accelerator()
    return torch.cuda.get_device_name() if accelerator.device_name() == "cuda" else accelerator.device_name()


def peak_memory_gib() -> float:
    """Peak device memory since the start, in GiB; on a CPU the peak resident memory of this process."""
    if get_accelerator().device_name() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return get_accelerator().max_memory_allocated() / 2**30


def synchronised_time() -> float:
    """Seconds of a clock, read when the device has finished all work that was queued."""
    get_accelerator().synchronize()
    return time.perf_counter()


def leave() -> NoReturn:
    """End this process with exit code 0; everything must be written by now.

    sys.exit would not do: threads of gloo or FFCV that are still there sometimes abort an interpreter that is ending
    (SIGABRT, "terminate called without an active exception"), and a launcher would report a finished run as failed.
    """
    shut_down()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def shut_down() -> None:
    """Destroy the process group, so that the interpreter ends without a warning."""
    if ranks.is_running():
        torch_dist.destroy_process_group()
