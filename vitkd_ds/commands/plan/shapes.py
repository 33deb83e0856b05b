"""Compute a step's floating-point operations and activation bytes from the shapes of the models.

The models are on torch's meta device, so their weights need no memory. `vitkd_ds.models.cost` counts the operations.
The optimizer's operations are not included.
"""

from collections.abc import Sequence

from torch import nn

from vitkd_ds.models.cost import forward_flops, num_tokens

BLOCK_BYTES_PER_TOKEN = 34
"""Bytes that a block keeps for backward per token and unit of width, in bf16.

The attention matrix is excluded, because fused attention does not keep it. The number is equation 2 of arXiv 2205.05198
without the term 5as/h. In eager mode on a CPU, the tensors saved by autograd were measured at 33.1 such bytes per block
for DeiT-Tiny and 32.7 for DeiT-Small. torch.compile keeps fewer bytes, because it recomputes some of these tensors."""
CHECKPOINTED_BYTES_PER_TOKEN = 2
"""Bytes that a block keeps per token and unit of width with activation checkpointing. This is its bf16 input."""
IMAGE_BYTES_PER_VALUE = 9
"""Bytes per value of an image: 1 as loaded (uint8), 4 after mixing (fp32), and 2 normalised for each of two models
(bf16)."""
MORE_BYTES_PER_VALUE = 2
"""Additional bytes per value of an image for each further teacher."""


def step_flops(
    student: nn.Module, teachers: Sequence[tuple[nn.Module, int]], loss: nn.Module | None, *, image_size: int
) -> int:
    """Return the number of floating-point operations of a training step per image.

    Backward of the student counts as two forwards. Teachers have no backward. The recomputation of activation
    checkpointing is not counted.

    Args:
        student: the student.
        teachers: pairs of a teacher and its image size in pixels.
        loss: module of the ViTKD loss, or None.
        image_size: image size of the student, in pixels.
    """
    aligners_and_convolutions = [p.numel() for p in loss.parameters() if p.ndim in (2, 4)] if loss else []
    trained = forward_flops(student, image_size) + 2 * student.patch_embed.num_patches * sum(aligners_and_convolutions)
    return 3 * trained + sum(forward_flops(teacher, size) for teacher, size in teachers)


def activation_bytes(student: nn.Module, *, checkpointed: bool) -> int:
    """Return the bytes that the student keeps for backward per image, in bf16.

    Args:
        checkpointed: whether activation checkpointing is on.
    """
    kept = len(student.blocks) * BLOCK_BYTES_PER_TOKEN
    if checkpointed:  # one block at a time is recomputed
        kept = len(student.blocks) * CHECKPOINTED_BYTES_PER_TOKEN + BLOCK_BYTES_PER_TOKEN
    return num_tokens(student) * student.embed_dim * kept
