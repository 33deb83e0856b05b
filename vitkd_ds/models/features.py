"""Features of stock timm models, and the shape legend of the project.

Tensor names end in their axes: B images per micro-batch per GPU, C H W image, P patch tokens, N all tokens (prefix and
patches), D embedding width (Ds student, Dt teacher), K classes, A heads, L tapped blocks. No backbone is edited,
because timm's own `forward_intermediates` walks the blocks.
"""

from typing import NamedTuple, Sequence

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn


class Features(NamedTuple):
    """Outputs of one forward pass that the losses compare."""

    logits_BK: Tensor
    shallow_BLPD: Tensor | None = None
    """Patch tokens of the residual stream after each tapped block, without a norm."""
    deep_BPD: Tensor | None = None
    """Patch tokens after the last block and the final norm."""


def tap_features(model: nn.Module, images_BCHW: Tensor, blocks: Sequence[int] = (0, 1)) -> Features:
    """Run a timm model once for its logits and, of a VisionTransformer, its patch tokens.

    The logits are bit for bit those of `model(images)`. Prefix tokens (class, distillation, registers) are cut by
    `model.num_prefix_tokens`. A model that normalises after pooling (`fc_norm`) has no final norm on its tokens, so
    its deep tokens are those of the last block.

    Args:
        model: the model, in train or eval mode.
        images_BCHW: normalised images in the model's dtype.
        blocks: tapped blocks in ascending order, counted from 0; () gives the logits alone, of any timm model.

    Returns:
        `Features` in the model's dtype.

    Raises:
        ValueError: the model is no VisionTransformer and blocks are tapped, it does not have a block, or the blocks do
            not ascend.

    **Source**: cls_KD's edited backbones (shallow: block outputs; deep: after the final norm).
    """
    if not len(blocks):
        return Features(model(images_BCHW))
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"a model whose blocks are tapped must be a timm VisionTransformer, found a {type(model).__name__}: give "
            "blocks=() for its logits alone"
        )
    if list(blocks) != sorted(set(blocks)) or blocks[0] < 0 or blocks[-1] >= len(model.blocks):
        raise ValueError(f"blocks must ascend within 0..{len(model.blocks) - 1}, found {tuple(blocks)}")
    tokens_BND, shallow = model.forward_intermediates(images_BCHW, indices=list(blocks), output_fmt="NLC")
    return Features(
        logits_BK=model.forward_head(tokens_BND),
        shallow_BLPD=torch.stack(shallow, dim=1),
        deep_BPD=tokens_BND[:, model.num_prefix_tokens :],
    )
