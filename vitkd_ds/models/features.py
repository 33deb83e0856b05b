"""Features of unmodified timm models, and the shape legend of the project.

Tensor names end in the names of their axes: B images of a micro-batch on one rank; C, H, W channels, height and width;
P patch tokens; N all tokens (prefix and patches); D embedding width (Ds student, Dt teacher); K classes; A heads;
L selected blocks (but in `kept_BL`, selected patches).

timm's `forward_intermediates` returns block outputs, so no backbone is modified.
"""

from typing import Any, Sequence

from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from vitkd_ds.losses.part import Features
from vitkd_ds.models.attention import AttentionMaps

TOKEN_MODELS = (VisionTransformer, Eva)
"""timm classes whose block outputs can be returned, because all their blocks have the same token grid:
VisionTransformer (ViT, DeiT, DINOv2, CLIP, SigLIP) and Eva (DINOv3, EUPE, PE, EVA-02)."""


def tap_features(
    model: nn.Module,
    images_BCHW: Tensor,
    blocks: Sequence[int] | None = (0, 1),
    *,
    maps: AttentionMaps | None = None,
) -> Features:
    """Run a timm model once and return its logits, pooled feature and tokens.

    The logits equal `model(images)` bit for bit, or come from the `linear_head` added by `build_teacher`. Prefix tokens
    (class, distillation, registers) are removed according to `model.num_prefix_tokens`. In a model that normalises
    after pooling (`fc_norm`), the final tokens are the last block's output without a norm.

    Args:
        model: the model, in train or eval mode.
        images_BCHW: normalised images in the model's dtype.
        blocks: indices of the block outputs to return, in ascending order from 0. Only an instance of
            TOKEN_MODELS has such outputs. For any timm model, () returns logits, pooled feature and final tokens, and
            None returns only logits.
        maps: the model's `AttentionMaps`; its maps are included in the result. None for no maps.

    Returns:
        `Features` in the model's dtype.

    Raises:
        ValueError: a block does not exist, the indices do not ascend, or the model is not an instance of TOKEN_MODELS.

    **Source**: cls_KD's edited backbones, which return the outputs of blocks, and the tokens after the final norm.
    """
    head = getattr(model, "linear_head", None)
    if blocks is None and head is None:
        return features_of_logits(model(images_BCHW))
    tapped = {}
    if maps is not None:
        maps.begin()
    if blocks:
        _check_blocks(model, blocks)
        tokens, found = model.forward_intermediates(images_BCHW, indices=list(blocks), output_fmt="NLC")
        tapped = dict(zip(blocks, found, strict=True))
    else:
        tokens = model.forward_features(images_BCHW)
    final_BPD = patch_tokens(model, tokens)
    has_class_token = getattr(model, "cls_token", None) is not None and final_BPD.shape[1] < tokens.shape[1]
    pooled_BD = tokens[:, 0] if tokens.ndim == 3 and has_class_token else final_BPD.mean(dim=1)
    logits = model.forward_head(tokens) if head is None else head(pooled_BD, final_BPD)
    if blocks is None:
        return features_of_logits(logits)
    attention = None if maps is None else maps.take()
    features = features_of_logits(logits)
    return features._replace(pooled_BD=pooled_BD, final_BPD=final_BPD, blocks=tapped, maps=attention)


def describe_pooled(model: nn.Module) -> dict[str, Any]:
    """Describe how to compute a model's `pooled_BD` from timm's `forward_features`, without this package.

    For tokens [B, N, width], the pooled feature is the class token (the first token), or the mean of the tokens after
    the first `num_prefix_tokens`. For a feature map, it is the mean over positions.
    """
    has_class_token = getattr(model, "cls_token", None) is not None
    average = "average of the patch tokens" if isinstance(model, TOKEN_MODELS) else "average of the positions"
    return {
        "pooled": "class token" if has_class_token else average,
        "num_prefix_tokens": getattr(model, "num_prefix_tokens", 0),
        "width": model.num_features,
    }


def features_of_logits(logits: Tensor | tuple[Tensor, Tensor]) -> Features:
    """Return `Features` of a timm model's output: logits, or a distilled model's logits of both heads in train mode."""
    return Features(logits) if isinstance(logits, Tensor) else Features(logits[0], distillation_BK=logits[1])


def patch_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """Convert the result of timm's `forward_features` to patch tokens [B, P, D].

    Prefix tokens are removed. A feature map becomes one token per position.
    """
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)


def _check_blocks(model: nn.Module, blocks: Sequence[int]) -> None:
    if not isinstance(model, TOKEN_MODELS):
        raise ValueError(
            f"blocks can be tapped only in a timm VisionTransformer or Eva, got a {type(model).__name__}. Pass "
            "blocks=() for final tokens, or None for logits only."
        )
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= len(model.blocks):
        raise ValueError(f"blocks must ascend within 0..{len(model.blocks) - 1}, got {tuple(blocks)}.")
