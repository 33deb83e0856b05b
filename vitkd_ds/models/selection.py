"""MaskedKD: the teacher sees only the patches that the student's class token attends to most.

The student goes first, as its attention chooses; see `Distiller.forward`. The class row of its last block's attention
is computed a second time, since a fused attention keeps none.

**Source**: MaskedKD (ECCV 2024) and its code, `losses.py`: the mean over heads, and the largest of it.
"""

import torch
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn

from vitkd_ds.config.teachers import USUAL
from vitkd_ds.losses.part import Features
from vitkd_ds.models.attention import mean_attention
from vitkd_ds.models.features import features_of_logits


class KeptTokens(nn.Module):
    """Stands in a VisionTransformer's `patch_drop`, after the position embedding: leaves prefix tokens and the patches
    numbered `kept_BL` (all if it is None)."""

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.kept_BL: Tensor | None = None

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Choose among embedded tokens."""
        if self.kept_BL is None:
            return tokens_BND
        prefix, patches = tokens_BND.split([self.num_prefix_tokens, tokens_BND.shape[1] - self.num_prefix_tokens], 1)
        chosen = self.kept_BL.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[2])
        return torch.cat([prefix, patches.gather(1, chosen)], dim=1)


def logits_and_attention(model: VisionTransformer, images_BCHW: Tensor) -> tuple[Features, Tensor]:
    """Run a student once; its logits, those of `model(images)` to the last bit, and its class token's attention.

    Returns:
        Features of the logits alone, in the model's dtype, and fp32 probabilities [B, P], those of prefix tokens left
        out: the last block's attention from the class token to each patch, mean over heads, without gradient.
    """
    before_last = [len(model.blocks) - 2]
    tokens_BND, [(patches_BPD, prefix_BND)] = model.forward_intermediates(
        images_BCHW, indices=before_last, output_fmt="NLC", return_prefix_tokens=True
    )
    features = features_of_logits(model.forward_head(tokens_BND))
    with torch.no_grad():
        last = model.blocks[-1]
        inputs_BND = last.norm1(torch.cat([prefix_BND, patches_BPD], dim=1))
        attention_BP = mean_attention(last.attn, inputs_BND, num_queries=1)[:, 0, model.num_prefix_tokens :]
    return features, attention_BP


def check_selection(student: nn.Module, teacher: nn.Module, keep_tokens: int, *, place: str = USUAL) -> None:
    """Raise ValueError unless the student's attention can choose `keep_tokens` patches of the teacher at a place."""
    key = f"{place}.keep_tokens={keep_tokens}"
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, VisionTransformer) or model.pos_embed is None:
            raise ValueError(
                f"{key} needs a VisionTransformer of timm with a position embedding as {role}, found "
                f"{type(model).__name__}: set --{place}.keep_tokens=0"
            )
    last = student.blocks[-1]
    if student.cls_token is None or len(student.blocks) < 2 or not isinstance(getattr(last, "attn", None), Attention):
        raise ValueError(
            f"{key} needs a student of two blocks or more whose class token attends, as its attention chooses the "
            f"patches, found {type(student).__name__} with {type(last).__name__}, class token "
            f"{student.cls_token is not None}: set --{place}.keep_tokens=0"
        )
    grids = [model.patch_embed.grid_size for model in (student, teacher)]
    if grids[0] != grids[1]:
        raise ValueError(
            f"{key} needs the same patch grid in student and teacher, found {grids[0]} and {grids[1]}: use models of "
            f"one patch size, or set --{place}.keep_tokens=0"
        )
    if keep_tokens >= teacher.patch_embed.num_patches:
        raise ValueError(
            f"{place}.keep_tokens must be less than the teacher's {teacher.patch_embed.num_patches} patches, found "
            f"{keep_tokens}: give about half, or 0 for all"
        )
