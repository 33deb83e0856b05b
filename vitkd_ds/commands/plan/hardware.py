"""Kinds of GPU by their makers' figures, and the speeds that were measured on one of them, with their sources.

A test compares every measured row with `benchmarks/RESULTS.md`.
"""

import os
import time
from dataclasses import dataclass
from typing import NamedTuple

from vitkd_ds.config.overrides import nearest


class Rate(NamedTuple):
    """Row of benchmarks/RESULTS.md, "" where the speed is assumed, and the speed of one device in it."""

    row: str
    images_per_s: float

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return 1 / self.images_per_s


# One H100, compiled, at 224 pixels; models are timm architectures without further arguments.
TEACHERS = {
    "deit3_small_patch16_224": Rate("C1", 28900),
    "deit3_base_patch16_224": Rate("C2", 11100),
    "deit3_large_patch16_224": Rate("C3", 3700),
}
"""Only forward, by architecture."""
STUDENTS = {
    "deit_tiny_patch16_224": Rate("C4", 13000),
    "deit_small_patch16_224": Rate("C5", 8800),
    "deit_base_patch16_224": Rate("C6", 3400),
}
"""Only forward and backward, by architecture."""
LOSS = Rate("C7", 106000)
LOSS_DIM = 384
"""ViTKD's loss, forward and backward, and the teacher's width."""
STEP = Rate("S6", 5342)
STEP_PARTS = (TEACHERS["deit3_small_patch16_224"], STUDENTS["deit_tiny_patch16_224"], LOSS)
"""A whole step with DeepSpeed, whose teacher is a replica, and its parts. The nearest measured settings to the shipped
ones, which also compute the norm in one go (not measured)."""
STEP_IMAGES = 256
"""Micro-batch of every whole step here, on one GPU."""
UPDATE_MS = 10.1
"""Part of `STEP` from the end of backward to the end of the update, waiting for the device at both."""
REPLICA = Rate("S3", 3577)
SHARD = Rate("S4", 3466)
SHARD_BLOCKS = 12
"""Whole steps whose difference is what the hooks of a shard of so many blocks cost."""
LOADER = Rate("ours-jpg500", 1548)
LOADER_BYTES = 57_596
"""JPEG decoding, crop, resize and flip on one EPYC core that is busy all the time, and the mean size of the JPEGs: at
most 500 pixels, quality 90, as `vitkd-ds pack` writes."""
FLAT_BACKWARD = (9.60 / 8.84 - 1) / (20.98 / 9.16 - 1)
FLAT_UPDATE = (2.74 / 9.41) / (5.63 / 9.68)
FLAT_GATHERS = ((10.17 - 4.67) / 4.88) / ((18.76 - 5.32) / 5.07)
"""The whole steps above had one parameter a weight. Part of their fixed times that flat parameters leave: of what
DeepSpeed adds to backward, of the update, and of a shard's gathers, each relative to the plain loop. Milliseconds of
the host on one CPU core (`benchmarks/host.py`)."""
HOST_ROWS = "H1, H2, H3, H4, H5, H6"


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in its usual node. Rates are of one GPU in one direction; 1 GB is 1e9 bytes."""

    device_name: str
    """Exact name that the driver prints: the PCIe and NVL cards of a family are slower, and have no entry."""
    memory_gib: float
    """Memory that a process can use."""
    nvlink_gb_per_s: float
    network_gb_per_s: float
    """Rate to other nodes through the GPU's own network card."""
    pcie_gb_per_s: float
    """Rate from the host's memory."""

    @property
    def is_measured(self) -> bool:
        """Whether the speeds above are of this GPU. On others fixed times are assumed to be the same, and what the GPU
        computes to reach the same part of its peak."""
        return self is HARDWARE["h100"]

    @property
    def slower(self) -> float:
        """Times as long as on the measured GPU that arithmetic takes."""
        return HARDWARE["h100"].peak_tflops / self.peak_tflops

    @property
    def peak_tflops(self) -> float:
        """Rate of dense bf16 matrix products."""
        from vitkd_ds.models.cost import PEAK_TFLOPS  # slow: torch, without which a mistyped name is found

        return PEAK_TFLOPS[self.device_name]


HARDWARE = {
    "h100": Hardware("NVIDIA H100 80GB HBM3", 79.1, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "h200": Hardware("NVIDIA H200", 139.8, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "a100": Hardware("NVIDIA A100-SXM4-80GB", 79.1, nvlink_gb_per_s=300, network_gb_per_s=25, pcie_gb_per_s=32),
    "rtx4090": Hardware("NVIDIA GeForce RTX 4090", 23.5, nvlink_gb_per_s=32, network_gb_per_s=3.1, pcie_gb_per_s=32),
}
SOURCE = "NVIDIA's data sheets (without sparsity) and DGX guides; of the RTX 4090 the network is assumed"
"""Source of the rates. An H100 and an H200 have a 400 Gb/s port each, an A100 one of 200 Gb/s. An RTX 4090 has PCIe 4.0
x16 in place of NVLink, and 25 Gb/s to other nodes."""


@dataclass(frozen=True)
class Cpu(Hardware):
    """One process's share of this machine's CPU cores and memory. The rates between processes are assumed."""

    matmul_tflops: float
    """Rate of bf16 matrix products, measured here."""

    @property
    def peak_tflops(self) -> float:
        """Rate of dense bf16 matrix products."""
        return self.matmul_tflops

    @property
    def slower(self) -> float:
        """Times as long as on the measured GPU that its loss takes, which waits for memory: 3,350 GB/s there, and 20
        GB/s of a CPU, assumed."""
        return 3350 / 20


def find_hardware(name: str, *, processes: int = 1) -> Hardware:
    """Look up a kind of GPU by its name here, or measure this machine's CPU, which `processes` share; ValueError if
    there is none of this name."""
    if name == "cpu":
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        rate = float(f"{matmul_tflops() / processes:.3g}")
        return Cpu(
            "cpu",
            round(gib / processes, 1),
            nvlink_gb_per_s=5,
            network_gb_per_s=1,
            pcie_gb_per_s=10,
            matmul_tflops=rate,
        )
    check_hardware(name)
    return HARDWARE[name]


def check_hardware(name: str) -> None:
    """Raise ValueError for a name that `find_hardware` does not know."""
    if name not in (*HARDWARE, "cpu"):
        raise ValueError(f"--hardware {name} is unknown: {nearest(name, [*HARDWARE, 'cpu'])}")


def matmul_tflops(size: int = 512, rounds: int = 9) -> float:
    """Measure the rate of square bf16 matrix products on all CPU cores of this process: that of the fastest."""
    import torch

    a, b = torch.ones(2, size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12


def hardware_of(device_name: str) -> Hardware | None:
    """Look up a kind of GPU by its driver's name for it, such as "NVIDIA H100 80GB HBM3"; None if it is unknown."""
    return next((hardware for hardware in HARDWARE.values() if hardware.device_name == device_name), None)
