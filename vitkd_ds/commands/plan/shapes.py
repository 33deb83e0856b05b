"""Arithmetic on a model's shapes: floating-point operations of a step, and bytes kept for the backward pass.

It works on models without memory (torch's meta device). Operations are those of `vitkd_ds.models.cost`; the optimizer's
are left out.
"""

from collections.abc import Sequence

from torch import nn

from vitkd_ds.models.cost import forward_flops, num_tokens

BLOCK_BYTES_PER_TOKEN = 34
"""Bytes that a block keeps per token and unit of width in bf16, without attention's matrix, which fused attention does
not keep (arXiv 2205.05198, equation 2, without its 5as/h). Measured: 33.1 for DeiT-Tiny and 32.7 for DeiT-Small, eager
on a CPU, all that autograd keeps divided over the blocks; torch.compile keeps less, as it computes some of it again."""
CHECKPOINTED_BYTES_PER_TOKEN = 2
"""Bytes that a block keeps per token and unit of width with activation checkpointing: its input in bf16."""
IMAGE_BYTES_PER_VALUE = 9
"""Bytes of one value of an image: as loaded (uint8), mixed (fp32), and normalised for each of two models (bf16)."""
MORE_BYTES_PER_VALUE = 2
"""The same for a further model."""


def step_flops(
    student: nn.Module, teachers: Sequence[tuple[nn.Module, int]], loss: nn.Module | None, *, image_size: int
) -> int:
    """Operations of one image in a training step: backward counts twice the forward, a teacher has only a forward,
    and what activation checkpointing computes again does not count."""
    aligners_and_convolutions = [p.numel() for p in loss.parameters() if p.ndim in (2, 4)] if loss else []
    trained = forward_flops(student, image_size) + 2 * student.patch_embed.num_patches * sum(aligners_and_convolutions)
    return 3 * trained + sum(forward_flops(teacher, size) for teacher, size in teachers)


def activation_bytes(student: nn.Module, *, checkpointed: bool) -> int:
    """Bytes that the student keeps of one image for the backward pass, in bf16."""
    kept = len(student.blocks) * BLOCK_BYTES_PER_TOKEN
    if checkpointed:  # and one block at a time is computed again
        kept = len(student.blocks) * CHECKPOINTED_BYTES_PER_TOKEN + BLOCK_BYTES_PER_TOKEN
    return num_tokens(student) * student.embed_dim * kept
