"""Check each node and the network: packages, devices, shared memory, stale build locks, compiler."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from vitkd_ds.checkpoint.folder import git_commit
from vitkd_ds.commands.doctor.rows import Patient, Row, error, judged, ok, size_text, unequal, warning
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import synchronised_time

SHOWN = ("torch", "deepspeed", "timm", "ffcv", "numpy")
LEAST_FREE = 0.9
"""Fraction of a GPU's memory that should be free before the run starts."""
LEAST_SHM_GIB = 1.0
"""Shared memory that should be free. NCCL uses it for buffers between ranks of a node.

Containers have 64 MiB by default."""
STALE_S = 600.0
"""Age in seconds above which a build lock is stale. No DeepSpeed op takes this long to build."""
SUM_MIB = 64
REPEATS = 5
"""MiB per timed all-reduce, and number of repetitions. A gradient bucket of ds_configs/zero2.json has 190 MiB."""
LEAST_SUM_GB_S = {"nvlink": (40.0, 5.0), "cuda": (4.0, 1.5), "cpu": (0.05, 0.05)}
"""All-reduce rates in GB/s below which doctor warns, by kind of device: (on one node, on several nodes).

A ring all-reduce reaches half the rate of its slowest link. PCIe 4 without peer access carries about 10 GB/s, 25 Gbit/s
Ethernet about 3 GB/s, and NVLink hundreds of GB/s. Nodes with NVLink are connected by 200 Gbit/s or more. These link
rates are from data sheets, not measured."""
NVLINK = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200")
"""Names of GPUs on boards with NVLink. PCIe and NVL cards have other names."""


def check_versions(patient: Patient) -> Iterator[Row]:
    """Check that the decoder loads, and that packages have the same versions on all ranks. Collective."""
    here = {"python": platform.python_version(), **{name: _version(name) for name in SHOWN}}
    shown = ", ".join(f"{name} {version}" for name, version in here.items())
    yield ok("versions", f"{shown}; torch built for CUDA {torch.version.cuda}")
    yield decoder_row(patient.run.data.backend)
    everywhere = ranks.from_all(here | {"git commit": git_commit()})
    for name in everywhere[0]:
        if found := unequal([versions[name] for versions in everywhere], patient.nodes):
            advice = "start all ranks from one shared environment and checkout"
            yield error("versions", f"{name} differs between ranks: {found}", advice)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def decoder_row(backend: str) -> Row:
    """Check that FFCV and the compiled decoder load.

    They fail to load if they were built for another version of Python, numpy or the C++ library.
    """
    if backend != "ffcv":
        return ok("decoder", f"not needed (data.backend={backend})")
    try:
        import vitkd_ds.data.beton.decode  # noqa: F401
    except Exception as caught:  # of any kind: a wrong build fails in many ways
        advice = "run `make setup` on this machine, or install the wheels of `make wheels`"
        return error("decoder", f"FFCV or the decoder does not load: {type(caught).__name__}: {caught}", advice)
    return ok("decoder", "FFCV and the compiled decoder load")


def check_devices(patient: Patient) -> Iterator[Row]:
    """Check that each rank's device is free and supports bf16, and that all devices are of one kind. Collective."""
    kind = processes.device_name()
    if patient.device.type == "cpu":
        cores = f"{len(os.sched_getaffinity(0))} cores, {processes.local_world_size()} ranks on this node"
        yield warning("device", f"no GPU; {cores}", "fine for the demo and --debug; ImageNet recipes need GPUs")
    else:
        free, total = torch.cuda.mem_get_info(patient.device)
        used = f"{kind}: {(total - free) / 2**30:.1f} of {total / 2**30:.0f} GiB are in use before the run"
        yield judged(free >= LEAST_FREE * total, "device", used, "by other processes", "find them with nvidia-smi")
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            advice = "use an Ampere or newer GPU; on this one, training is several times slower"
            yield warning("bf16", f"{kind} only emulates bf16", advice)
    if found := unequal(ranks.from_all(kind), patient.nodes):
        yield warning("device", f"devices differ: {found}", "use equal devices; the slowest one limits all ranks")


def check_network(patient: Patient) -> Iterator[Row]:
    """Measure the rate of an all-reduce over all ranks. The slowest link limits it. Collective."""
    if ranks.world_size() == 1:
        yield ok("network", "only one rank, so there is no communication")
        return
    numbers = torch.ones(SUM_MIB * 2**18, device=patient.device)
    times = []
    for _ in range(1 + REPEATS):
        ranks.all_true(True, patient.device)  # align the ranks
        start = synchronised_time()
        ranks.sum_over_ranks(numbers)
        times.append(synchronised_time() - start)
    # The first all-reduce sets up connections, so it is not timed. The slowest rank determines the rate.
    seconds = max(ranks.from_all(min(times[1:])))
    gb_per_s = SUM_MIB * 2**20 / 1e9 / seconds
    least = least_sum_gb_s(processes.device_name(), len(set(patient.nodes)))
    found = f"{ranks.world_size()} ranks all-reduce {SUM_MIB} MiB at {gb_per_s:.2f} GB/s ({1000 * seconds:.0f} ms)"
    advice = "run with NCCL_DEBUG=INFO and check that NCCL uses NVLink or InfiniBand"
    yield judged(gb_per_s >= least, "network", found, f"expected at least {least:g} GB/s", advice)


def least_sum_gb_s(name: str, num_nodes: int) -> float:
    """Return the all-reduce rate in GB/s below which doctor warns, for a device name and a number of nodes."""
    kind = "cpu" if name == "cpu" else "nvlink" if name in NVLINK else "cuda"
    return LEAST_SUM_GB_S[kind][num_nodes > 1]


def check_machine(patient: Patient) -> Iterator[Row]:
    """Check shared memory and build locks, and the compiler if the run uses torch.compile."""
    free = shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else 0
    advice = "mount a tmpfs there, start the container with --shm-size=8g, or remove old files there"
    found = f"/dev/shm has {size_text(free)} free"
    problem = f"expected at least {LEAST_SHM_GIB:g} GiB"
    yield judged(free >= LEAST_SHM_GIB * 2**30, "shared memory", found, problem, advice)
    yield build_locks_row()
    if patient.run.is_compiled:
        yield compiler_row(patient.device)


def build_locks_row() -> Row:
    """Check for lock files of killed builds of C++ extensions. The next build would wait for them without a message."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    found = [path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)]
    stale = sorted(str(path) for path in found if time.time() - path.stat().st_mtime > STALE_S)
    if not stale:
        return ok("build locks", f"no stale lock in {folder}")
    text = f"a killed build left {', '.join(stale)}; the next build there would wait forever"
    return warning("build locks", text, f"rm {' '.join(stale)}")


def compiler_row(device: torch.device) -> Row:
    """Check that torch.compile works. It needs a C compiler and, on a GPU, Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as caught:  # of any kind: a missing compiler fails in many ways
        found = f"torch.compile, which this recipe uses, failed: {type(caught).__name__}: {str(caught)[:200]}"
        return error("compiler", found, "install gcc (and triton on a GPU), or pass --compile=false")
    return ok("compiler", "torch.compile builds and runs a kernel")
