"""What one GPU of a kind, and the node around it, can do at most: the makers' figures, each with its source.

Speeds that were measured are in `vitkd_ds.commands.plan.measured`; here is only what does not depend on this project.
"""

from dataclasses import dataclass

from vitkd_ds.config.overrides import nearest


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU in its usual eight-GPU node. Rates are in one direction, 1 GB = 1e9 bytes."""

    name: str
    device_name: str
    """As drivers print it, to the letter: the PCIe and NVL cards of a name are slower, and have no entry."""
    peak_tflops: float
    """bf16 matrix products, dense, of one GPU."""
    memory_gib: float
    """What a process can use of one GPU."""
    nvlink_gb_per_s: float
    """From one GPU to the others of its node."""
    network_gb_per_s: float
    """From one GPU's own network card to other nodes."""
    pcie_gb_per_s: float
    """From the host's memory to one GPU."""
    gpus_per_node: int
    source: str


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            name="h100",
            device_name="NVIDIA H100 80GB HBM3",
            peak_tflops=989.4,
            memory_gib=79.1,
            nvlink_gb_per_s=450,
            network_gb_per_s=50,
            pcie_gb_per_s=64,
            gpus_per_node=8,
            source="NVIDIA H100 SXM5 80 GB data sheet (without sparsity); DGX H100 guide: one 400 Gb/s port a GPU",
        ),
        Hardware(
            name="h200",
            device_name="NVIDIA H200",
            peak_tflops=989.4,
            memory_gib=139.8,
            nvlink_gb_per_s=450,
            network_gb_per_s=50,
            pcie_gb_per_s=64,
            gpus_per_node=8,
            source="NVIDIA H200 SXM data sheet (without sparsity); DGX H200 guide: one 400 Gb/s port a GPU",
        ),
        Hardware(
            name="a100",
            device_name="NVIDIA A100-SXM4-80GB",
            peak_tflops=312,
            memory_gib=79.1,
            nvlink_gb_per_s=300,
            network_gb_per_s=25,
            pcie_gb_per_s=32,
            gpus_per_node=8,
            source="NVIDIA A100 SXM4 80 GB data sheet (without sparsity); DGX A100 guide: one 200 Gb/s port a GPU",
        ),
    )
}


def find_hardware(name: str) -> Hardware:
    """The entry of that name.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    if name not in HARDWARE:
        raise ValueError(f"--hardware must be one of {', '.join(HARDWARE)}, found {name!r}: {nearest(name, HARDWARE)}")
    return HARDWARE[name]


def hardware_of(device_name: str) -> Hardware | None:
    """The entry of a device as its driver names it, such as "NVIDIA H100 80GB HBM3"; None for any other."""
    return next((entry for entry in HARDWARE.values() if entry.device_name == device_name), None)
