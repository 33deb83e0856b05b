"""MaskedKD: the teacher sees only the patches with the largest attention from the student's class token.

The student runs first, because its attention selects the patches; see `Distiller.forward`. The attention from the
class token in the last block is computed again, because fused attention does not store it.

**Source**: MaskedKD (ECCV 2024) and its code, `losses.py`: attention is averaged over heads, and the largest values
are selected.
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
    """Module that selects tokens. It replaces a VisionTransformer's `patch_drop`, which follows the position embedding.

    It keeps the prefix tokens, and the patches with the indices `kept_BL`. If `kept_BL` is None, it keeps all patches.
    """

    def __init__(self, num_prefix_tokens: int) -> None:
        super().__init__()
        self.num_prefix_tokens = num_prefix_tokens
        self.kept_BL: Tensor | None = None

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the selected tokens."""
        if self.kept_BL is None:
            return tokens_BND
        prefix, patches = tokens_BND.split([self.num_prefix_tokens, tokens_BND.shape[1] - self.num_prefix_tokens], 1)
        chosen = self.kept_BL.unsqueeze(-1).expand(-1, -1, tokens_BND.shape[2])
        return torch.cat([prefix, patches.gather(1, chosen)], dim=1)


def logits_and_attention(model: VisionTransformer, images_BCHW: Tensor) -> tuple[Features, Tensor]:
    """Run a student once and return its logits, equal to `model(images)` bit for bit, and its class token's attention.

    Returns:
        Features with only logits, in the model's dtype, and the attention from the class token to each patch in the
        last block: fp32 [B, P], averaged over heads, without gradient and without prefix tokens.
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
    """Raise ValueError if the student's attention cannot select `keep_tokens` patches for the teacher at `place`."""
    key = f"{place}.keep_tokens={keep_tokens}"
    for role, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, VisionTransformer) or model.pos_embed is None:
            raise ValueError(
                f"{key} needs a timm VisionTransformer with a position embedding as {role}, got "
                f"{type(model).__name__}. Set --{place}.keep_tokens=0."
            )
    last = student.blocks[-1]
    if student.cls_token is None or len(student.blocks) < 2 or not isinstance(getattr(last, "attn", None), Attention):
        raise ValueError(
            f"{key} needs a student with a class token, two or more blocks, and timm's Attention, got "
            f"{type(student).__name__} with {len(student.blocks)} blocks of type {type(last).__name__} and "
            f"{'no' if student.cls_token is None else 'a'} class token. Set --{place}.keep_tokens=0."
        )
    grids = [model.patch_embed.grid_size for model in (student, teacher)]
    if grids[0] != grids[1]:
        raise ValueError(
            f"{key} needs the same patch grid in student and teacher, got {grids[0]} and {grids[1]}. Choose models "
            f"with the same patch size, or set --{place}.keep_tokens=0."
        )
    if keep_tokens >= teacher.patch_embed.num_patches:
        raise ValueError(
            f"{place}.keep_tokens must be less than the teacher's {teacher.patch_embed.num_patches} patches, got "
            f"{keep_tokens}. Set it to about half, or to 0 for all."
        )
