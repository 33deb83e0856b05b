"""What a model costs: parameters, tokens, and floating-point operations of one image."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PEAK_TFLOPS = {"NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H200": 989.4, "NVIDIA A100-SXM4-80GB": 312.0}
"""Dense bf16 matrix products of a GPU by the name that its driver prints: NVIDIA's data sheets, without sparsity."""


def num_parameters(module: nn.Module) -> int:
    """Count all parameters, trained or not."""
    return sum(p.numel() for p in module.parameters())


def num_tokens(model: nn.Module) -> int | None:
    """Count the patches and prefix tokens of a timm VisionTransformer; None for a model of another kind."""
    if not hasattr(model, "num_prefix_tokens") or not hasattr(model, "patch_embed"):
        return None
    return model.patch_embed.num_patches + model.num_prefix_tokens


def forward_flops(model: nn.Module, image_size: int) -> int:
    """Operations of one square image through a timm model; on torch's meta device they are counted without being made.

    torch counts those of matrix products, convolutions and attention, two for a multiply-add. Norms, activations and
    softmaxes are left out, as is usual for MFU.
    """
    is_training, weight = model.training, next(model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype))
    model.train(is_training)
    return counter.get_total_flops()


def step_gflops(costs: dict[str, dict[str, Any] | None]) -> float:
    """GFLOPs of one image in a training step, by the `cost_of` of `student` and `teacher`: forward and backward, which
    is two more, of the student, and the teacher's forward; without the losses."""
    return 3 * costs["student"]["gflops"] + (costs["teacher"]["gflops"] if costs["teacher"] else 0)


def cost_of(model: nn.Module, image_size: int) -> dict[str, Any]:
    """Parameters, tokens (None for a model without a grid of them) and GFLOPs of an image, of a model on meta."""
    return {
        "parameters": num_parameters(model),
        "tokens": num_tokens(model),
        "gflops": forward_flops(model, image_size) / 1e9,
    }
