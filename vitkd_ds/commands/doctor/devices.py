"""The device of each rank: there, free, able to compute in bf16, and like the others."""

import os
from pathlib import Path

import torch

from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, error, ok, warning
from vitkd_ds.engine import processes, ranks

LEAST_FREE = 0.9
"""Part of a GPU's memory that should be free before anything of ours runs."""


def check_local_rank() -> None:
    """Set the rank's variables, and check that it has a GPU of its own, before the ranks meet.

    Raises:
        ValueError: LOCAL_RANK is not below the number of visible GPUs.
    """
    processes.set_rank_variables()
    if os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available():
        processes.choose_device(torch.cuda.device_count())


def check_devices(patient: Patient) -> list[Row]:
    """What computes. Collective."""
    rows = gpu_rows(patient.device) if patient.is_gpu else cpu_rows()
    kinds = ranks.from_all(_kind(patient.device))
    other = next((rank for rank, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        found = f"{kinds[0]} on {patient.nodes[0]}, {kinds[other]} on {patient.nodes[other]}"
        rows.append(warning("device", f"found different devices: {found}", "all ranks go at the pace of the slowest"))
    return rows


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def cpu_rows() -> list[Row]:
    """A CPU is enough for the demo; beside an idle GPU it is a mistake."""
    cores = f"{len(os.sched_getaffinity(0))} cores, {processes.local_world_size()} ranks on this node"
    advice = "fine for the demo and --debug; an ImageNet recipe needs GPUs"
    if os.environ.get("DS_ACCELERATOR") != "cpu" and (driver := driver_version()):
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found = f"torch must see the GPU (driver {driver}), found none: torch is built {built}"
        return [error("device", found, "install the torch build for this driver, or check CUDA_VISIBLE_DEVICES")]
    return [warning("device", f"no GPU; {cores}", advice)]


def gpu_rows(device: torch.device) -> list[Row]:
    """Name, memory, bf16."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    capability = f"{properties.major}.{properties.minor}"
    found = f"{properties.name}, {total / 2**30:.0f} GiB, compute capability {capability}, driver {driver_version()}"
    rows = [ok("device", f"{torch.cuda.device_count()} visible here, each rank has one: {found}")]
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        text = f"{properties.name} (compute capability {capability}) does not compute in bf16 but emulates it"
        rows.append(warning("device", text, "use Ampere or newer: here the engines run several times slower"))
    if free < LEAST_FREE * total:
        found = f"{(total - free) / 2**30:.1f} of {total / 2**30:.0f} GiB are in use already"
        rows.append(warning("device", found, "see nvidia-smi for whose they are"))
    return rows


def driver_version() -> str:
    """Of NVIDIA's kernel driver; "" where there is none."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
