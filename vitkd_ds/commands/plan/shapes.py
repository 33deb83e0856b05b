"""Compute a step's floating-point operations and activation bytes from a model's shapes.

This works on torch's meta device, without memory for weights. Operations are counted by `vitkd_ds.models.cost`, without
the optimizer's.
"""

from collections.abc import Sequence

from torch import nn

from vitkd_ds.models.cost import forward_flops, num_tokens

BLOCK_BYTES_PER_TOKEN = 34
"""Bytes that a block keeps for backward per token and unit of width, in bf16.

Attention's matrix is excluded, because fused attention does not keep it (arXiv 2205.05198, equation 2, without its
5as/h). Measured on a CPU in eager mode, as all tensors saved by autograd divided by the number of blocks: 33.1 for
DeiT-Tiny and 32.7 for DeiT-Small. torch.compile keeps less because it recomputes some."""
CHECKPOINTED_BYTES_PER_TOKEN = 2
"""Bytes that a block keeps per token and unit of width with activation checkpointing: its bf16 input."""
IMAGE_BYTES_PER_VALUE = 9
"""Bytes per image value: loaded (uint8), mixed (fp32), and normalised for each of two models (bf16)."""
MORE_BYTES_PER_VALUE = 2
"""Additional bytes per image value for each further model."""


def step_flops(
    student: nn.Module, teachers: Sequence[tuple[nn.Module, int]], loss: nn.Module | None, *, image_size: int
) -> int:
    """Return the number of operations of a training step per image.

    Backward counts as two forwards. Teachers run only forward. Recomputation by activation checkpointing is excluded.
    """
    aligners_and_convolutions = [p.numel() for p in loss.parameters() if p.ndim in (2, 4)] if loss else []
    trained = forward_flops(student, image_size) + 2 * student.patch_embed.num_patches * sum(aligners_and_convolutions)
    return 3 * trained + sum(forward_flops(teacher, size) for teacher, size in teachers)


def activation_bytes(student: nn.Module, *, checkpointed: bool) -> int:
    """Return the bytes that the student keeps for backward per image, in bf16."""
    kept = len(student.blocks) * BLOCK_BYTES_PER_TOKEN
    if checkpointed:  # one block at a time is recomputed
        kept = len(student.blocks) * CHECKPOINTED_BYTES_PER_TOKEN + BLOCK_BYTES_PER_TOKEN
    return num_tokens(student) * student.embed_dim * kept
