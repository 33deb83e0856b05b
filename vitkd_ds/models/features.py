"""Features of stock timm models, and the shape legend of the project.

Tensor names end in their axes: B images per micro-batch per GPU, C H W image, P patch tokens, N all tokens (prefix and
patches), D embedding width (Ds student, Dt teacher), K classes, A heads, L tapped blocks. No backbone is edited,
because timm's own `forward_intermediates` walks the blocks.
"""

from typing import Any, Sequence

from timm.models import Eva, VisionTransformer
from torch import Tensor, nn

from vitkd_ds.losses.part import Features
from vitkd_ds.models.attention import AttentionMaps

TOKEN_MODELS = (VisionTransformer, Eva)
"""Classes of timm whose blocks keep one grid of tokens and can be tapped: ViT, DeiT, DINOv2, CLIP and SigLIP; DINOv3,
EUPE, PE and EVA-02."""


def tap_features(
    model: nn.Module,
    images_BCHW: Tensor,
    blocks: Sequence[int] | None = (0, 1),
    *,
    maps: AttentionMaps | None = None,
) -> Features:
    """Run a timm model once for its logits, its pooled feature and its tokens.

    The logits are bit for bit those of `model(images)`, or those of the `linear_head` that `build_teacher` gave it.
    Prefix tokens (class, distillation, registers) are cut by `model.num_prefix_tokens`. A model that normalises after
    pooling (`fc_norm`) has no final norm on its tokens, so its final tokens are those of the last block.

    Args:
        model: the model, in train or eval mode.
        images_BCHW: normalised images in the model's dtype.
        blocks: tapped blocks of one of TOKEN_MODELS in ascending order, counted from 0; () gives logits, pooled feature
            and final tokens of any timm model, and None its logits alone.
        maps: attention of the model's blocks, which the result has, too; None is no attention.

    Returns:
        `Features` in the model's dtype.

    Raises:
        ValueError: the model is none of TOKEN_MODELS and blocks are tapped, it does not have a block, or the blocks do
            not ascend.

    **Source**: cls_KD's edited backbones (blocks: their outputs; final: after the final norm).
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
    """What `pooled_BD` of a model is, for a reader without this package: `forward_features` gives tokens [B, N, width],
    of which it is the first, or the mean of those after `num_prefix_tokens`; or a map, of whose positions it is the
    mean."""
    has_class_token = getattr(model, "cls_token", None) is not None
    average = "average of the patch tokens" if isinstance(model, TOKEN_MODELS) else "average of the positions"
    return {
        "pooled": "class token" if has_class_token else average,
        "num_prefix_tokens": getattr(model, "num_prefix_tokens", 0),
        "width": model.num_features,
    }


def features_of_logits(logits: Tensor | tuple[Tensor, Tensor]) -> Features:
    """What a timm model returns: logits, or in training with a distillation token those of both heads."""
    return Features(logits) if isinstance(logits, Tensor) else Features(logits[0], distillation_BK=logits[1])


def patch_tokens(model: nn.Module, features: Tensor) -> Tensor:
    """What a timm model's `forward_features` returns, as patch tokens [B, P, D]: tokens without their prefix, or the
    positions of a map."""
    if features.ndim == 3:
        return features[:, getattr(model, "num_prefix_tokens", 0) :]
    is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
    return features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)


def _check_blocks(model: nn.Module, blocks: Sequence[int]) -> None:
    if not isinstance(model, TOKEN_MODELS):
        raise ValueError(
            f"a model whose blocks are tapped must be a timm VisionTransformer or Eva, found a {type(model).__name__}: "
            "give blocks=() for its final tokens, or None for its logits alone"
        )
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= len(model.blocks):
        raise ValueError(f"blocks must ascend within 0..{len(model.blocks) - 1}, found {tuple(blocks)}")
