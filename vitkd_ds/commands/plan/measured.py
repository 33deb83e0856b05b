"""Measured speeds that predictions start from, each with its row in `benchmarks/RESULTS.md`.

Apart from the model that uses them (`vitkd_ds.commands.plan.predict`), because they change for another reason: a new measurement. A
test holds every row here against the table there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rate:
    """Images per second of one part or of the whole step, on one device."""

    row: str
    """Of benchmarks/RESULTS.md."""
    what: str
    images_per_s: float
    micro_batch: int = 256

    @property
    def seconds(self) -> float:
        """Per image."""
        return 1 / self.images_per_s


@dataclass(frozen=True)
class Measured:
    """What was measured on one kind of GPU; models are timm architectures at 224 pixels without further arguments."""

    teacher: dict[str, Rate]
    """Forward alone, compiled."""
    student: dict[str, Rate]
    """Forward and backward alone, compiled."""
    loss: Rate
    """ViTKD's loss, forward and backward, compiled, at width `loss_dim`."""
    loss_dim: int
    step: Rate
    """The whole step of DeiT-Tiny from DeiT III-Small with DeepSpeed, the teacher a compiled replica."""
    step_parts_ms: tuple[float, float, float, float]
    """Of that step: teacher, forward, backward, update, waiting for the device after each."""
    step_student: str
    step_teacher: str
    before_shard: Rate
    """A whole step with the teacher as a replica, and the same with a shard of one rank: what its hooks cost."""
    shard: Rate
    loader: Rate
    """One CPU core, busy all the time: JPEG decoding, crop, resize and flip."""
    loader_bytes_per_image: int
    """Of the file that the loader's row reads: JPEGs of at most 500 pixels at quality 90, as `vitkd-ds pack` writes."""


MEASURED = {
    "h100": Measured(
        teacher={
            "deit3_small_patch16_224": Rate("C1", "teacher forward, DeiT III-Small", 28900),
            "deit3_base_patch16_224": Rate("C2", "teacher forward, DeiT III-Base", 11100),
            "deit3_large_patch16_224": Rate("C3", "teacher forward, DeiT III-Large", 3700),
        },
        student={
            "deit_tiny_patch16_224": Rate("C4", "student forward and backward, DeiT-Tiny", 13000),
            "deit_small_patch16_224": Rate("C5", "student forward and backward, DeiT-Small", 8800),
            "deit_base_patch16_224": Rate("C6", "student forward and backward, DeiT-Base", 3400),
        },
        loss=Rate("C7", "ViTKD loss forward and backward at width 384", 106000),
        loss_dim=384,
        # The nearest measured settings to the shipped ones, which also compute the norm in one go (not measured).
        step=Rate("S6", "whole step, Tiny pair, ZeRO-2 without the overflow scan", 5342),
        step_parts_ms=(10.1, 8.2, 23.6, 10.1),
        step_student="deit_tiny_patch16_224",
        step_teacher="deit3_small_patch16_224",
        before_shard=Rate("S3", "whole step, Tiny pair, ZeRO-2 default, replica", 3577),
        shard=Rate("S4", "whole step, Tiny pair, ZeRO-2 default, shard of one rank, leaf modules", 3466),
        loader=Rate("ours-jpg500", "loader, one core", 1548, micro_batch=64),
        loader_bytes_per_image=57_596,
    )
}
"""One H100 for the GPU rows, one EPYC core for the loader's."""
