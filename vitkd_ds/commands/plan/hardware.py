"""What is known of each kind of GPU: the makers' figures, and speeds that were measured on it, with their sources.

Only data is here; a test compares every measured row with `benchmarks/RESULTS.md`.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from vitkd_ds.config.overrides import nearest
from vitkd_ds.models.cost import PEAK_TFLOPS


class Rate(NamedTuple):
    """Row of benchmarks/RESULTS.md, "" where the speed is assumed, and the speed of one device in it."""

    row: str
    images_per_s: float

    @property
    def seconds(self) -> float:
        """Seconds per image."""
        return 1 / self.images_per_s


class Host(NamedTuple):
    """Row of benchmarks/RESULTS.md from `benchmarks/host.py`: milliseconds of the parts of a step, nearly all of them
    the host's, on one CPU core."""

    row: str
    teacher: float
    forward: float
    backward: float
    update: float


class HostRows(NamedTuple):
    """What the fixed times of a step on a GPU are scaled by: the host's part of them, in one process and turn about."""

    plain: Host
    """The plain compiled loop."""
    replica: Host
    shard: Host

    @property
    def backward(self) -> float:
        """What DeepSpeed adds to a backward pass, in backward passes of the plain loop."""
        return self.replica.backward / self.plain.backward - 1

    @property
    def update(self) -> float:
        """An update, in updates of the plain loop."""
        return self.replica.update / self.plain.update

    @property
    def gathers(self) -> float:
        """What a shard adds to the teacher's forward, in forwards of the plain loop's."""
        return (self.shard.teacher - self.replica.teacher) / self.plain.teacher


@dataclass(frozen=True)
class Measured:
    """Speeds on one kind of GPU, compiled, at 224 pixels; models are timm architectures without further arguments."""

    teacher: dict[str, Rate]
    """Forward alone, by architecture."""
    student: dict[str, Rate]
    """Forward and backward alone, by architecture."""
    loss: Rate
    """ViTKD's loss, forward and backward, at the teacher's width `loss_dim`."""
    step: Rate
    """The whole step with DeepSpeed, of `step_student` from `step_teacher`, which is a replica."""
    update_ms: float
    """Milliseconds of that step from the end of backward to the end of the update, waiting for the device at both."""
    before_shard: Rate
    """A whole step with the teacher as a replica."""
    shard: Rate
    """The same with a shard of one rank: the difference is what its hooks cost."""
    loader: Rate
    """JPEG decoding, crop, resize and flip on one CPU core that is busy all the time."""
    loader_bytes_per_image: int
    """Mean size of the JPEGs read: at most 500 pixels, quality 90, as `vitkd-ds pack` writes."""
    host_then: HostRows
    """The host with one parameter a weight, as in `step`, `before_shard` and `shard`."""
    host_now: HostRows
    """The host with flat parameters."""
    loss_dim: int = 384
    step_images: int = 256
    """Micro-batch of every whole step here, on one GPU."""
    step_student: str = "deit_tiny_patch16_224"
    step_teacher: str = "deit3_small_patch16_224"
    shard_blocks: int = 12
    """Blocks of the teacher in `shard`."""

    @property
    def alone(self) -> list[Rate]:
        """Parts of `step`, each measured alone."""
        return [self.teacher[self.step_teacher], self.student[self.step_student], self.loss]


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
    source: str
    measured: Measured | None = None
    gpus_per_node: int = 8
    is_borrowed: bool = False
    """Whether `measured` is another GPU's."""

    @property
    def slower(self) -> float:
        """Times as long as on the GPU of `measured` that arithmetic takes."""
        return PEAK_TFLOPS[HARDWARE["h100"].device_name] / self.peak_tflops if self.is_borrowed else 1.0

    @property
    def peak_tflops(self) -> float:
        """Rate of dense bf16 matrix products."""
        return PEAK_TFLOPS[self.device_name]


MEASURED_ON_H100 = Measured(
    teacher={
        "deit3_small_patch16_224": Rate("C1", 28900), "deit3_base_patch16_224": Rate("C2", 11100),
        "deit3_large_patch16_224": Rate("C3", 3700),
    },
    student={
        "deit_tiny_patch16_224": Rate("C4", 13000), "deit_small_patch16_224": Rate("C5", 8800),
        "deit_base_patch16_224": Rate("C6", 3400),
    },
    loss=Rate("C7", 106000),
    # The nearest measured settings to the shipped ones, which also compute the norm in one go (not measured).
    step=Rate("S6", 5342), update_ms=10.1, before_shard=Rate("S3", 3577), shard=Rate("S4", 3466),
    loader=Rate("ours-jpg500", 1548), loader_bytes_per_image=57_596,
    host_then=HostRows(
        Host("H1", 5.07, 6.38, 9.16, 9.68), Host("H2", 5.32, 6.37, 20.98, 5.63), Host("H3", 18.76, 6.37, 21.05, 5.90)
    ),
    host_now=HostRows(
        Host("H4", 4.88, 6.13, 8.84, 9.41), Host("H5", 4.67, 5.70, 9.60, 2.74), Host("H6", 10.17, 6.06, 10.37, 2.98)
    ),
)  # fmt: skip
"""One H100 for the rows of the GPU, one EPYC core for the loader's."""

HARDWARE = {
    "h100": Hardware(
        "NVIDIA H100 80GB HBM3", memory_gib=79.1, nvlink_gb_per_s=450, network_gb_per_s=50,
        pcie_gb_per_s=64, measured=MEASURED_ON_H100,
        source="NVIDIA H100 SXM5 80 GB data sheet (without sparsity); DGX H100 guide: one 400 Gb/s port a GPU",
    ),
    "h200": Hardware(
        "NVIDIA H200", memory_gib=139.8, nvlink_gb_per_s=450, network_gb_per_s=50, pcie_gb_per_s=64,
        source="NVIDIA H200 SXM data sheet (without sparsity); DGX H200 guide: one 400 Gb/s port a GPU",
    ),
    "a100": Hardware(
        "NVIDIA A100-SXM4-80GB", memory_gib=79.1, nvlink_gb_per_s=300, network_gb_per_s=25,
        pcie_gb_per_s=32,
        source="NVIDIA A100 SXM4 80 GB data sheet (without sparsity); DGX A100 guide: one 200 Gb/s port a GPU",
    ),
    "rtx4090": Hardware(
        "NVIDIA GeForce RTX 4090", memory_gib=23.5, nvlink_gb_per_s=32, network_gb_per_s=3.1, pcie_gb_per_s=32,
        gpus_per_node=4,
        source="NVIDIA Ada architecture paper; no NVLink: PCIe 4.0 x16 within a node; 25 Gb/s to others, assumed",
    ),
}  # fmt: skip


def find_hardware(name: str) -> Hardware:
    """Look up a kind of GPU by its name here; ValueError if there is none. Where nothing was measured on it, fixed
    times are the H100's, and what the GPU computes is assumed to reach the same part of its peak."""
    if name not in HARDWARE:
        raise ValueError(f"--hardware must be one of {', '.join(HARDWARE)}, found {name!r}: {nearest(name, HARDWARE)}")
    found = HARDWARE[name]
    return found if found.measured else replace(found, measured=MEASURED_ON_H100, is_borrowed=True)


def hardware_of(device_name: str) -> Hardware | None:
    """Look up a kind of GPU by its driver's name for it, such as "NVIDIA H100 80GB HBM3"; None if it is unknown."""
    return next((hardware for hardware in HARDWARE.values() if hardware.device_name == device_name), None)
