"""Data-sheet figures of GPUs, and speeds measured on an H100, each with its source.

A test compares every measured row with `benchmarks/RESULTS.md`.
"""

import os
import time
from dataclasses import dataclass
from typing import NamedTuple

from vitkd_ds.config.overrides import nearest


class Rate(NamedTuple):
    """Speed of one device and its row in benchmarks/RESULTS.md; the row is "" if the speed is assumed."""

    row: str
    images_per_s: float

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return 1 / self.images_per_s


# One H100, compiled, 224-px images; timm architectures without further arguments.
TEACHERS = {
    "deit3_small_patch16_224": Rate("C1", 28900),
    "deit3_base_patch16_224": Rate("C2", 11100),
    "deit3_large_patch16_224": Rate("C3", 3700),
}
"""Forward only, by architecture."""
STUDENTS = {
    "deit_tiny_patch16_224": Rate("C4", 13000),
    "deit_small_patch16_224": Rate("C5", 8800),
    "deit_base_patch16_224": Rate("C6", 3400),
}
"""Forward and backward only, by architecture."""
LOSS = Rate("C7", 106000)
LOSS_DIM = 384
"""Forward and backward of the ViTKD loss, and the teacher width that it was measured with."""
STEP = Rate("S6", 5342)
STEP_PARTS = (TEACHERS["deit3_small_patch16_224"], STUDENTS["deit_tiny_patch16_224"], LOSS)
"""Complete DeepSpeed step with a replicated teacher, and its components measured separately.

The shipped settings are the same except for the gradient norm in one collective, which was not measured."""
STEP_IMAGES = 256
"""Micro-batch of all complete steps below, on one GPU."""
UPDATE_MS = 10.1
"""Time in `STEP` from the end of backward to the end of the update, synchronised with the device at both."""
REPLICA = Rate("S3", 3577)
SHARD = Rate("S4", 3466)
SHARD_BLOCKS = 12
"""Complete steps with a replicated and a sharded teacher of 12 blocks; the difference is the cost of hooks."""
LOADER = Rate("ours-jpg500", 1548)
LOADER_BYTES = 57_596
"""Decoding, cropping, resizing and flipping JPEGs on one fully used EPYC core, and the JPEGs' mean size in bytes.

They have at most 500 pixels on the longest side and quality 90, the defaults of `vitkd-ds pack`."""
FLAT_BACKWARD = (9.60 / 8.84 - 1) / (20.98 / 9.16 - 1)
FLAT_UPDATE = (2.74 / 9.41) / (5.63 / 9.68)
FLAT_GATHERS = ((10.17 - 4.67) / 4.88) / ((18.76 - 5.32) / 5.07)
"""Fractions of fixed times that remain with flat parameters; the complete steps above had one parameter per weight.

They apply to the time that DeepSpeed adds to backward, to the update, and to a shard's gathers, each relative to a loop
without DeepSpeed. Measured in host milliseconds on one CPU core (`benchmarks/host.py`)."""
HOST_ROWS = "H1, H2, H3, H4, H5, H6"


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in a typical node. Rates are per GPU and direction; 1 GB is 1e9 bytes."""

    device_name: str
    """Exact device name of the driver. The slower PCIe and NVL cards of a family have no entry."""
    memory_gib: float
    """Usable device memory."""
    nvlink_gb_per_s: float
    network_gb_per_s: float
    """Rate to other nodes through the GPU's network card."""
    pcie_gb_per_s: float
    """Rate from host memory."""

    @property
    def is_measured(self) -> bool:
        """Whether the speeds above were measured on this GPU.

        Other GPUs are assumed to have the same fixed times and to reach the same fraction of their peak.
        """
        return self is HARDWARE["h100"]

    @property
    def slower(self) -> float:
        """Compute time relative to the measured GPU."""
        return HARDWARE["h100"].peak_tflops / self.peak_tflops

    @property
    def peak_tflops(self) -> float:
        """Peak of dense bf16 matrix products, TFLOP/s."""
        from vitkd_ds.models.cost import PEAK_TFLOPS  # imports torch; not needed to reject a mistyped name

        return PEAK_TFLOPS[self.device_name]


HARDWARE = {
    "h100": Hardware("NVIDIA H100 80GB HBM3", 79.1, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "h200": Hardware("NVIDIA H200", 139.8, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "a100": Hardware("NVIDIA A100-SXM4-80GB", 79.1, nvlink_gb_per_s=300, network_gb_per_s=25, pcie_gb_per_s=32),
    "rtx4090": Hardware("NVIDIA GeForce RTX 4090", 23.5, nvlink_gb_per_s=32, network_gb_per_s=3.1, pcie_gb_per_s=32),
}
SOURCE = "NVIDIA's data sheets (without sparsity) and DGX guides; the RTX 4090's network is assumed"
"""Source of the rates. Each H100 and H200 has a 400 Gbit/s port, each A100 one of 200 Gbit/s. An RTX 4090 has PCIe 4.0
x16 instead of NVLink, and 25 Gbit/s to other nodes."""


@dataclass(frozen=True)
class Cpu(Hardware):
    """One process's part of this machine's CPU cores and memory. Rates between processes are assumed."""

    matmul_tflops: float
    """Measured rate of bf16 matrix products on this machine."""

    @property
    def peak_tflops(self) -> float:
        """Rate of dense bf16 matrix products, TFLOP/s."""
        return self.matmul_tflops

    @property
    def slower(self) -> float:
        """Ratio of the loss's time to that on the measured GPU. The loss is limited by memory bandwidth: 3,350 GB/s
        there and an assumed 20 GB/s on a CPU."""
        return 3350 / 20


def find_hardware(name: str, *, processes: int = 1) -> Hardware:
    """Return a kind of GPU by its short name, or for "cpu" measure this machine's CPU, shared by `processes`.

    Raises:
        ValueError: the name is unknown.
    """
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
    """Raise ValueError for a name unknown to `find_hardware`."""
    if name not in (*HARDWARE, "cpu"):
        raise ValueError(f"--hardware {name} is unknown: {nearest(name, [*HARDWARE, 'cpu'])}")


def matmul_tflops(size: int = 512, rounds: int = 9) -> float:
    """Measure square bf16 matrix products on all CPU cores of this process; return the fastest rate, TFLOP/s."""
    import torch

    a, b = torch.ones(2, size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12


def hardware_of(device_name: str) -> Hardware | None:
    """Return a kind of GPU by its driver name, such as "NVIDIA H100 80GB HBM3"; None if it is unknown."""
    return next((hardware for hardware in HARDWARE.values() if hardware.device_name == device_name), None)
