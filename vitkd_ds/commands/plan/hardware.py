"""Data-sheet figures of GPUs, and speeds measured on an H100, each with its source.

A test compares every measured speed with its row in `benchmarks/RESULTS.md`.
"""

import os
import time
from dataclasses import dataclass
from typing import NamedTuple

from vitkd_ds.config.overrides import nearest


class Rate(NamedTuple):
    """Speed of one device. `row` is the row of benchmarks/RESULTS.md with this speed, or "" for an assumed speed."""

    row: str
    images_per_s: float

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return 1 / self.images_per_s


# Measured on one H100, compiled, with 224-px images and timm architectures with default arguments.
TEACHERS = {
    "deit3_small_patch16_224": Rate("C1", 28900),
    "deit3_base_patch16_224": Rate("C2", 11100),
    "deit3_large_patch16_224": Rate("C3", 3700),
}
"""Architecture -> speed of the teacher's forward."""
STUDENTS = {
    "deit_tiny_patch16_224": Rate("C4", 13000),
    "deit_small_patch16_224": Rate("C5", 8800),
    "deit_base_patch16_224": Rate("C6", 3400),
}
"""Architecture -> speed of the student's forward and backward together."""
LOSS = Rate("C7", 106000)
LOSS_DIM = 384
"""Speed of the ViTKD loss (forward and backward), and the teacher width of that measurement."""
STEP = Rate("S6", 5342)
STEP_PARTS = (TEACHERS["deit3_small_patch16_224"], STUDENTS["deit_tiny_patch16_224"], LOSS)
"""Speed of a complete DeepSpeed step with a replicated teacher, and of its components measured separately.

The packaged settings differ from the measured ones in one point: they compute the gradient norm in one collective."""
STEP_IMAGES = 256
"""Images per micro-batch in all measured complete steps. They ran on one GPU."""
UPDATE_MS = 10.1
"""Time in `STEP` from the end of backward to the end of the update. The device was synchronised at both points."""
REPLICA = Rate("S3", 3577)
SHARD = Rate("S4", 3466)
SHARD_BLOCKS = 12
"""Speeds of complete steps with a replicated and with a sharded teacher of 12 blocks. The difference in time is the
cost of the sharded teacher's hooks."""
LOADER = Rate("ours-jpg500", 1548)
LOADER_BYTES = 57_596
"""Speed of decoding, cropping, resizing and flipping JPEGs on one fully used EPYC core, and their mean size in bytes.

The JPEGs have at most 500 pixels on the longest side and quality 90, the defaults of `vitkd-ds pack`."""
FLAT_BACKWARD = (9.60 / 8.84 - 1) / (20.98 / 9.16 - 1)
FLAT_UPDATE = (2.74 / 9.41) / (5.63 / 9.68)
FLAT_GATHERS = ((10.17 - 4.67) / 4.88) / ((18.76 - 5.32) / 5.07)
"""Factors for three durations that flat parameters shorten: the time that DeepSpeed adds to backward, the update, and
the gathers of a sharded teacher.

The complete steps above were measured with one parameter per weight, so these durations are multiplied by the factors.
Each duration was measured relative to a loop without DeepSpeed, in host milliseconds on one CPU core
(`benchmarks/host.py`, the rows HOST_ROWS of benchmarks/RESULTS.md)."""
HOST_ROWS = "H1, H2, H3, H4, H5, H6"


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in a typical node. Transfer rates are per GPU and direction; 1 GB is 1e9 bytes."""

    device_name: str
    """Device name reported by the driver. The slower PCIe and NVL versions of these GPUs have no entry."""
    memory_gib: float
    """Usable device memory."""
    nvlink_gb_per_s: float
    network_gb_per_s: float
    """Transfer rate to other nodes through the GPU's network card."""
    pcie_gb_per_s: float
    """Transfer rate from host memory."""

    @property
    def is_measured(self) -> bool:
        """Whether the speeds in this file were measured on this kind of GPU.

        For other GPUs, `plan` assumes the same fraction of the peak, and the same fixed times per micro-batch and step.
        """
        return self is HARDWARE["h100"]

    @property
    def slower(self) -> float:
        """Compute time of this GPU divided by the compute time of the measured GPU, the H100."""
        return HARDWARE["h100"].peak_tflops / self.peak_tflops

    @property
    def peak_tflops(self) -> float:
        """Peak rate of dense bf16 matrix products, TFLOP/s."""
        from vitkd_ds.models.cost import PEAK_TFLOPS  # imports torch; not needed to reject a mistyped name

        return PEAK_TFLOPS[self.device_name]


HARDWARE = {
    "h100": Hardware("NVIDIA H100 80GB HBM3", 79.1, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "h200": Hardware("NVIDIA H200", 139.8, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64),
    "a100": Hardware("NVIDIA A100-SXM4-80GB", 79.1, nvlink_gb_per_s=300, network_gb_per_s=25, pcie_gb_per_s=32),
    "rtx4090": Hardware("NVIDIA GeForce RTX 4090", 23.5, nvlink_gb_per_s=32, network_gb_per_s=3.1, pcie_gb_per_s=32),
}
SOURCE = "NVIDIA's data sheets (without sparsity) and DGX guides; the RTX 4090's network is assumed"
"""Source of the transfer rates. Each H100 and H200 is assigned a network port of 400 Gbit/s, each A100 one of 200
Gbit/s, and each RTX 4090 one of 25 Gbit/s. An RTX 4090 has PCIe 4.0 x16 instead of NVLink."""


@dataclass(frozen=True)
class Cpu(Hardware):
    """This machine's CPU cores and memory, divided by the number of processes. Transfer rates are assumed."""

    matmul_tflops: float
    """Measured rate of bf16 matrix products on this machine, per process, TFLOP/s."""

    @property
    def peak_tflops(self) -> float:
        """Measured rate of dense bf16 matrix products per process, TFLOP/s."""
        return self.matmul_tflops

    @property
    def slower(self) -> float:
        """Time of the loss on this CPU divided by its time on the measured GPU.

        Memory bandwidth limits the loss: 3,350 GB/s on the H100, and an assumed 20 GB/s on a CPU.
        """
        return 3350 / 20


def find_hardware(name: str, *, processes: int = 1) -> Hardware:
    """Return the hardware called `name`. For "cpu", measure this machine's CPU.

    Args:
        name: a key of HARDWARE, or "cpu".
        processes: number of processes that share the CPU; ignored for GPUs.

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
    """Raise ValueError if `find_hardware` does not know the name."""
    if name not in (*HARDWARE, "cpu"):
        raise ValueError(f"--hardware {name} is unknown: {nearest(name, [*HARDWARE, 'cpu'])}")


def matmul_tflops(size: int = 512, rounds: int = 9) -> float:
    """Measure bf16 products of square matrices on all CPU cores of this process; return the highest rate, TFLOP/s.

    Args:
        size: rows and columns of each matrix.
        rounds: number of measured products.
    """
    import torch

    a, b = torch.ones(2, size, size, dtype=torch.bfloat16)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12


def hardware_of(device_name: str) -> Hardware | None:
    """Return the hardware for the driver's device name, such as "NVIDIA H100 80GB HBM3"; None if it is unknown."""
    return next((hardware for hardware in HARDWARE.values() if hardware.device_name == device_name), None)
