"""Each node by itself: packages, device, limits, space, clock, and locks that a killed build left behind."""

import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from vitkd_ds.checkpoint.folder import git_commit
from vitkd_ds.commands.doctor.rows import Patient, Row, error, judged, ok, size_text, unequal, warning
from vitkd_ds.engine import processes, ranks

BUILT = f"torch built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch built without CUDA"
SHOWN = ("python", "torch", "deepspeed", "timm", "ffcv", "numpy")
LEAST_FREE = 0.9
"""Part of a GPU's memory that should be free before anything of ours runs."""
FILES_BASE, FILES_PER_RANK = 512, 16
"""Open files that a rank may need: its own, and sockets to the others."""
LEAST_SHM_GIB, LEAST_SCRATCH_GIB = 1.0, 2.0
"""NCCL keeps its buffers between the ranks of a node in shared memory; containers start with 64 MiB of it."""
MOST_SKEW_S = 1.0
STALE_S = 600.0
"""A lock of a build that is older is dead: no op of DeepSpeed takes so long to build."""


def check_versions(patient: Patient) -> Iterator[Row]:
    """Packages: within setup.py's ranges, loadable, and the same on all ranks. Collective."""
    installed, rows = requirement_rows(metadata.requires("vitkd_ds") or [])
    here = {"python": platform.python_version(), **installed, "git commit": git_commit()}
    shown = ", ".join(f"{name} {here[name]}" for name in SHOWN if name in here)
    commit, _, mark = here["git commit"].partition("-")
    commit = f", commit {commit[:12]}{mark and f' ({mark})'}" if commit else ""
    yield ok("versions", f"{shown}{commit}; {BUILT}")
    yield from rows
    yield decoder_row(patient.run.data.backend)
    yield from difference_rows(ranks.from_all(here), patient.nodes)


def requirement_rows(requirements: list[str]) -> tuple[dict[str, str], list[Row]]:
    """Versions of what lines such as "timm<2,>=1.0.25" ask for, extras apart, and a row for each that does not fit."""
    from packaging.requirements import Requirement  # torch's and deepspeed's own requirement

    installed, rows = {}, []
    for requirement in map(Requirement, requirements):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted, found = f"{requirement.name}{requirement.specifier}", "none"
        with suppress(metadata.PackageNotFoundError):
            found = installed[requirement.name] = metadata.version(requirement.name)
        if found == "none" or not requirement.specifier.contains(found, prereleases=True):
            rows.append(error("versions", f"{wanted} must be installed, found {found}", f"pip install '{wanted}'"))
    return installed, rows


def decoder_row(backend: str) -> Row:
    """Whether the decoder and FFCV load here: they may have been built for another Python, numpy or C++ library."""
    if backend != "ffcv":
        return ok("decoder", f"not needed, as data.backend is {backend}")
    try:
        import vitkd_ds.data.beton.decode  # noqa: F401
    except Exception as caught:  # any kind: a wrong build fails in many ways
        advice = "run `make setup` on this machine, or install the wheels of `make wheels`"
        return error("decoder", f"FFCV and the decoder must load, found {type(caught).__name__}: {caught}", advice)
    return ok("decoder", "FFCV and the compiled decoder load")


def difference_rows(versions_of_ranks: list[dict[str, str]], nodes: list[str]) -> Iterator[Row]:
    """A row for each package that some rank has in another version than rank 0; the same rows on all ranks."""
    advice = "start all ranks from one shared environment and checkout"
    for name in dict.fromkeys(key for versions in versions_of_ranks for key in versions):
        if found := unequal([versions.get(name, "none") for versions in versions_of_ranks], nodes):
            yield error("versions", f"{name} must be the same on all ranks, found {found}", advice)


def check_devices(patient: Patient) -> Iterator[Row]:
    """The device of each rank: there, free, able to compute in bf16, and like the others. Collective."""
    device, kind = patient.device, "cpu"
    if device.type == "cuda":
        yield from gpu_rows(device)
        kind = torch.cuda.get_device_name(device)
    # A CPU is enough for the demo; beside an idle GPU it is a mistake.
    elif os.environ.get("DS_ACCELERATOR") != "cpu" and (driver := driver_version()):
        found = f"torch must see the GPU (driver {driver}), found none: {BUILT}"
        yield error("device", found, "install the torch build for this driver, or check CUDA_VISIBLE_DEVICES")
    else:
        cores = f"{len(os.sched_getaffinity(0))} cores, {processes.local_world_size()} ranks on this node"
        yield warning("device", f"no GPU; {cores}", "fine for the demo and --debug; an ImageNet recipe needs GPUs")
    if found := unequal(ranks.from_all(kind), patient.nodes):
        yield warning("device", f"found different devices: {found}", "all ranks go at the pace of the slowest")


def gpu_rows(device: torch.device) -> Iterator[Row]:
    """The GPU of this rank: its name and memory, and what is not as it should be."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    kind = f"{properties.name}, {total / 2**30:.0f} GiB, compute capability {properties.major}.{properties.minor}"
    found = f"{torch.cuda.device_count()} visible here, each rank has one: {kind}, driver {driver_version()}"
    yield ok("device", found)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        advice = "use Ampere or newer: here the engines run several times slower"
        yield warning("device", f"{kind}, does not compute in bf16 but emulates it", advice)
    if free < LEAST_FREE * total:
        found = f"{(total - free) / 2**30:.1f} of {total / 2**30:.0f} GiB are in use already"
        yield warning("device", found, "see nvidia-smi for whose they are")


def driver_version() -> str:
    """The version of NVIDIA's kernel driver; "" where there is none."""
    try:
        words = processes.DRIVER.read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def check_machine(patient: Patient) -> Iterator[Row]:
    """Limits, space, locks, and the clocks of all nodes. Collective."""
    yield open_files_row(ranks.world_size())
    advice = "start the container with --shm-size=8g, or remove old files there"
    yield space_row("shared memory", "/dev/shm", LEAST_SHM_GIB, advice)
    advice = "set TMPDIR to a larger folder of the node's own disk, or clear it"
    yield space_row("scratch", tempfile.gettempdir(), LEAST_SCRATCH_GIB, advice)
    yield build_locks_row()
    if patient.device.type == "cpu":
        yield openmp_row()
    if patient.run.is_compiled:
        yield compiler_row(patient.device)
    ranks.barrier()  # so that all clocks are read at the same moment
    yield clocks_row(ranks.from_all(time.time()), patient.nodes)


def open_files_row(world_size: int) -> Row:
    """The limit of open files of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = FILES_BASE + FILES_PER_RANK * world_size
    is_enough = soft == resource.RLIM_INFINITY or soft >= least
    problem, advice = f"expected at least {least} with {world_size} ranks", f"ulimit -n {hard} before the start"
    return judged(is_enough, "open files", f"limited to {soft}", problem, advice)


def space_row(name: str, folder: str, least_gib: float, advice: str) -> Row:
    """The free space in a folder of this node."""
    if not os.path.isdir(folder):
        return warning(name, f"{folder} must exist, found none", "mount a tmpfs there")
    free = shutil.disk_usage(folder).free
    found, problem = f"{folder} has {size_text(free)} free", f"expected at least {least_gib:g} GiB"
    return judged(free >= least_gib * 2**30, name, found, problem, advice)


def build_locks_row() -> Row:
    """Locks of C++ extensions whose build was killed: later builds of torch block on them silently."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    found = [path for pattern in ("*/lock", "*/*/lock") for path in folder.glob(pattern)]
    stale = sorted(str(path) for path in found if time.time() - path.stat().st_mtime > STALE_S)
    if not stale:
        return ok("build locks", f"none that is stale in {folder}")
    text = f"a build that was killed left {', '.join(stale)}: the next build there would wait for ever"
    return warning("build locks", text, f"rm {' '.join(stale)}")


def openmp_row(environ: Mapping[str, str] = os.environ) -> Row:
    """Whether OpenMP's waiting threads sleep: spinning, they stop each other as soon as another process computes."""
    policy, threads = environ.get("OMP_WAIT_POLICY", "none"), torch.get_num_threads()
    found = f"OMP_WAIT_POLICY={policy}, {threads} threads"
    problem = "with another busy process on these cores training becomes several times slower"
    return judged(policy.upper() == "PASSIVE", "openmp", found, problem, "unset OMP_WAIT_POLICY, or set it to PASSIVE")


def compiler_row(device: torch.device) -> Row:
    """Whether torch.compile, which the recipe uses, finds a C compiler and on a GPU Triton."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as caught:  # any kind: a missing compiler fails in many ways
        found = f"torch.compile must work for this recipe, found {type(caught).__name__}: {str(caught)[:200]}"
        return error("compiler", found, "install gcc (and on a GPU triton), or train with --compile=false")
    return ok("compiler", "torch.compile makes and runs a kernel")


def clocks_row(times_s: list[float], nodes: list[str]) -> Row:
    """Compare the clocks of the ranks, from times that were read at the same moment."""
    (first, behind), (last, ahead) = min(zip(times_s, nodes)), max(zip(times_s, nodes))
    if last - first <= MOST_SKEW_S:
        return ok("clocks", f"at most {1000 * (last - first):.0f} ms apart")
    found = f"the clock of {ahead} is {last - first:.1f} s ahead of that of {behind}, expected at most {MOST_SKEW_S:g}"
    return warning("clocks", found, "have the nodes' time service looked at: file times decide which lock is stale")
