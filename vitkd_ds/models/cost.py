"""Cost of models and loss terms: parameters, tokens, floating-point operations per image, memory."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitkd_ds.config import teachers
from vitkd_ds.config.term import Needs, Term
from vitkd_ds.losses.part import Features, LossPart, PairInfo
from vitkd_ds.models.distiller import part_of
from vitkd_ds.models.features import TOKEN_MODELS
from vitkd_ds.models.selection import KeptTokens

PEAK_TFLOPS = {
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA GeForce RTX 4090": 165.2,
}
"""Peak TFLOPS of dense bf16 matrix products with fp32 accumulation, by the GPU's name in its driver. Source: NVIDIA's
data sheets, without sparsity."""


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trainable or not."""
    return sum(p.numel() for p in module.parameters())


def num_tokens(model: nn.Module) -> int | None:
    """Return the number of tokens (patches and prefix) of a timm VisionTransformer or Eva; None for other models."""
    if not hasattr(model, "num_prefix_tokens") or not hasattr(model, "patch_embed"):
        return None
    return model.patch_embed.num_patches + model.num_prefix_tokens


def forward_flops(model: nn.Module, image_size: int) -> int:
    """Return the floating-point operations of a timm model's forward pass on one square image.

    torch counts matrix products, convolutions and attention, with two operations per multiply-add. Norms, activations
    and softmaxes are not counted, as is usual for MFU. A model on the meta device is counted without computing.
    """
    is_training = model.training
    weight = next(model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=weight.device, dtype=weight.dtype))
    model.train(is_training)
    return counter.get_total_flops()


def step_gflops(costs: dict[str, dict[str, Any] | None]) -> float:
    """Return the GFLOPs per image of a training step, not counting losses, from the models' costs in config.json.

    The student's forward pass counts three times, because backward costs as much as two forward passes. A teacher's
    counts once.
    """
    return 3 * costs["student"]["gflops"] + sum(cost["gflops"] for cost in teachers.read(costs).values())


def head_of(model: nn.Module) -> str | None:
    """Describe the input of the classifier of a timm VisionTransformer or Eva; return None for other models."""
    if not isinstance(model, TOKEN_MODELS):
        return None
    if hasattr(model, "head_dist"):
        return "class and distillation token"
    return {"token": "class token", "avg": "average pooling"}.get(model.global_pool, f"{model.global_pool} pooling")


def keep_patches(model: nn.Module, number: int) -> None:
    """Make a model on the meta device drop all but `number` patches of each image."""
    model.patch_drop = KeptTokens(model.num_prefix_tokens)
    model.patch_drop.kept_BL = torch.zeros(1, number, dtype=torch.int64, device="meta")


def cost_of(model: nn.Module, image_size: int, *, keep_tokens: int = 0) -> dict[str, Any]:
    """Return the cost of a model on the meta device: parameters, tokens, the classifier's input, and GFLOPs per image.

    Tokens and the classifier's input are None for a model other than a VisionTransformer or Eva. `keep_tokens` is the
    number of patches that the model sees; 0 is all.
    """
    tokens = num_tokens(model)
    if keep_tokens:
        keep_patches(model, keep_tokens)
        tokens = keep_tokens + model.num_prefix_tokens
    return {
        "parameters": num_parameters(model),
        "tokens": tokens,
        "head": head_of(model),
        "gflops": forward_flops(model, image_size) / 1e9,
    }


def term_cost(term: Term, pair: PairInfo, *, num_classes: int) -> tuple[int, int]:
    """Return the cost of a term per image: operations of forward and backward, and bytes kept from forward to backward.

    The bytes are the size of the teacher's bf16 features and of the tensors that autograd saves. The student's features
    do not count, because they belong to the cost of the student. The term runs on the CPU with zeros as features, for
    one image and for two images, and the difference is the cost per image. Operations are counted as in
    `forward_flops`.
    """
    part = part_of(term)(term, pair)
    for parameter in part.parameters():  # but not the buffers, because some stay in fp32
        parameter.data = parameter.bfloat16()
    one, two = (
        _run_term(part, *(_features(pair, term.needs, role, number, num_classes) for role in ("student", "teacher")))
        for number in (1, 2)
    )
    return two[0] - one[0], two[1] - one[1]


def _run_term(part: LossPart, student: Features, teacher: Features) -> tuple[int, int]:
    # By address, because several tensors may share memory. The dict keeps them alive, so that no address is reused.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = part(student, teacher, torch.zeros(student.logits_BK.shape))
        sum(losses.values()).backward()
    for tensor in _tensors(teacher):
        keep(tensor)
    known = {tensor.untyped_storage().data_ptr() for tensor in _tensors(student)}
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in known)
    return counter.get_total_flops(), size


def _features(pair: PairInfo, needs: Needs, role: str, num_images: int, num_classes: int) -> Features:
    """Return zero features in bf16; the student's require gradients."""
    dim, (rows, columns) = getattr(pair, f"{role}_dim"), getattr(pair, f"{role}_grid")
    like = {"dtype": torch.bfloat16, "requires_grad": role == "student"}
    logits_BK, pooled_BD = (torch.zeros(num_images, size, **like) for size in (num_classes, dim))
    tokens = {number: torch.zeros(num_images, rows * columns, dim, **like) for number in needs.tapped(role)}
    final_BPD = torch.zeros(num_images, rows * columns, dim, **like)
    shape = (num_images, rows * columns, rows * columns)
    attention = {
        number: torch.zeros(shape, requires_grad=role == "student") for number in getattr(needs, f"{role}_attention")
    }
    return Features(logits_BK, pooled_BD, final_BPD, tokens, maps=attention)


def _tensors(features: Features) -> list[Tensor]:
    return [features.pooled_BD, features.final_BPD, *features.blocks.values(), *features.maps.values()]
