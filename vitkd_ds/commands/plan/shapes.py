"""Arithmetic on a model's shapes: parameters, tokens, floating-point operations, bytes kept for the backward pass.

Works on models without memory (torch's meta device). Operations are those of matrix products, convolutions and
attention, two for a multiply-add; norms, activations, softmaxes, optimizer are left out, as is usual for MFU.
"""

from torch import nn

BLOCK_BYTES_PER_TOKEN = 34
"""Bytes a block keeps per token and unit of width in bf16, without attention's matrix, which fused attention does not
keep (arXiv 2205.05198, equation 2, without its 5as/h). Measured 33.1 for DeiT-Tiny and 32.7 for DeiT-Small, eager on a
CPU, all that autograd keeps spread over the blocks; what torch.compile computes again makes it less."""

LOSS_BYTES_PER_PATCH = 22
"""Likewise for ViTKD, of the teacher's width: the teacher's three features (6); kept for the backward pass, measured,
16: the masked tokens and what the first convolution gives in bf16, three differences in fp32."""

CHECKPOINTED_BYTES_PER_TOKEN = 2
"""Likewise with activation checkpointing: a block's input."""

IMAGE_BYTES_PER_VALUE = 9
"""A value of an image as it comes (uint8), mixed (fp32), and normalised for each model (bf16)."""


def num_parameters(module: nn.Module) -> int:
    """All of them, trained or not."""
    return sum(p.numel() for p in module.parameters())


def num_tokens(model: nn.Module) -> int:
    """Patches and prefix tokens of a timm VisionTransformer."""
    return model.patch_embed.num_patches + model.num_prefix_tokens


def forward_flops(model: nn.Module) -> int:
    """Of one image through a timm VisionTransformer: patch embedding, blocks with attention, classifier."""
    N, D = num_tokens(model), model.embed_dim
    matrices = sum(p.numel() for block in model.blocks for p in block.parameters() if p.ndim == 2)
    attention = 2 * N * N * D * len(model.blocks)  # queries x keys, and weights x values
    patches = model.patch_embed.num_patches * model.patch_embed.proj.weight.numel()
    head = sum(p.numel() for p in model.head.parameters() if p.ndim == 2)
    return 2 * (N * matrices + attention + patches + head)


def loss_flops(loss: nn.Module, num_patches: int) -> int:
    """Of one image through ViTKD's aligners and convolutions, forward; 0 for a module without any."""
    return 2 * num_patches * sum(p.numel() for p in loss.parameters() if p.ndim in (2, 4))


def step_flops(student: nn.Module, teacher: nn.Module | None, loss: nn.Module | None) -> int:
    """Of one image in a training step: student and losses forward and backward (twice the forward), teacher forward.

    What activation checkpointing computes again does not count.
    """
    trained = forward_flops(student) + (loss_flops(loss, student.patch_embed.num_patches) if loss else 0)
    return 3 * trained + (forward_flops(teacher) if teacher else 0)


def activation_bytes(student: nn.Module, *, checkpointed: bool) -> int:
    """What the student keeps of one image for the backward pass, in bf16."""
    token = num_tokens(student) * student.embed_dim
    if checkpointed:
        return token * (len(student.blocks) * CHECKPOINTED_BYTES_PER_TOKEN + BLOCK_BYTES_PER_TOKEN)
    return token * len(student.blocks) * BLOCK_BYTES_PER_TOKEN
