"""Attention maps of chosen blocks, recomputed from queries and keys because fused attention does not store them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from vitkd_ds.losses.precision import at_least_fp32

KINDS = (Attention, AttentionRope, EvaAttention)
"""timm's attention classes whose queries and keys this module can compute. A subclass may compute them differently."""


class AttentionMaps:
    """Attention maps of chosen blocks, computed by hooks during the model's forward pass.

    The blocks run unchanged, with fused attention. A hook runs inside its block's forward, so the weights are available
    even if ZeRO gathers them only for the block. The hooks store maps only between `begin` and `take`.

    Args:
        model: an instance of `vitkd_ds.models.features.TOKEN_MODELS` with unwrapped blocks.
        blocks: block indices; negative ones count from the end.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int]) -> None:
        self._num_prefix_tokens = model.num_prefix_tokens
        self._found: dict[int, Tensor] | None = None
        # Blocks that are compiled one by one share graphs. Without this guard, a graph compiled for a block without a
        # hook would also be used for a block with a hook.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        for number in blocks:
            attention = model.blocks[number].attn
            attention.register_forward_pre_hook(partial(self._record, number), with_kwargs=True)

    def begin(self) -> None:
        """Start storing maps for the next forward pass."""
        self._found = {}

    def take(self) -> dict[int, Tensor]:
        """Return the stored maps by block, and clear them. A map is attention among patches, [B, P, P], at least fp32.

        A map is averaged over heads. Its rows sum to less than 1 if prefix tokens receive some of the attention.
        """
        found = self._found
        self._found = None
        return found

    def _record(self, number: int, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        map_BNN = mean_attention(attention, args[0], kwargs.get("rope"))
        # Activation checkpointing runs a block again in backward, when no map is needed.
        if self._found is not None:
            prefix = self._num_prefix_tokens
            self._found[number] = map_BNN[:, prefix:, prefix:]


def check_attention(model: nn.Module, blocks: Sequence[int], *, role: str, term: str) -> None:
    """Raise ValueError if attention maps of a model's blocks cannot be computed."""
    for number in blocks:
        attention = getattr(model.blocks[number], "attn", None)
        if type(attention) not in KINDS:
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise ValueError(
                f"losses.{term} needs blocks with an attention layer of timm ({known}), but block {number} of the "
                f"{role} is a {type(model.blocks[number]).__name__} with {type(attention).__name__}. Choose another "
                f"{role}, or set --losses.{term}.weight=0."
            )


def mean_attention(
    attention: nn.Module, tokens_BND: Tensor, rope: Tensor | None = None, *, num_queries: int | None = None
) -> Tensor:
    """Return the probabilities of an attention layer, averaged over heads: [B, N, N], in at least fp32.

    Args:
        attention: a layer whose class is in KINDS.
        tokens_BND: the layer's input.
        rope: the rotary embedding passed to the layer, if any.
        num_queries: number of rows to compute, starting with the first; None computes all N.
    """
    query_BAND, key_BAND = _queries_and_keys(attention, tokens_BND, rope)
    query_BAND = at_least_fp32(query_BAND[:, :, :num_queries])
    with torch.autocast(tokens_BND.device.type, enabled=False):
        scores_BANN = attention.scale * query_BAND @ at_least_fp32(key_BAND).transpose(-2, -1)
    return scores_BANN.softmax(dim=-1).mean(dim=1)


def _queries_and_keys(attention: nn.Module, tokens_BND: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return queries and keys [B, A, N, D / A], computed as in the layer's forward."""
    if attention.qkv is not None:
        bias = _bias(attention)
        projected = attention.qkv(tokens_BND) if bias is None else F.linear(tokens_BND, attention.qkv.weight, bias)
        query, key, _ = projected.chunk(3, dim=-1)
    else:
        query, key = attention.q_proj(tokens_BND), attention.k_proj(tokens_BND)
    query_BAND = attention.q_norm(query.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    key_BAND = attention.k_norm(key.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2))
    if rope is not None:
        query_BAND = _rotated(attention, query_BAND, rope)
        key_BAND = _rotated(attention, key_BAND, rope)
    groups = attention.num_heads // key_BAND.shape[1]
    return query_BAND, key_BAND.repeat_interleave(groups, dim=1) if groups > 1 else key_BAND


def _rotated(attention: nn.Module, queries_BAND: Tensor, rope: Tensor) -> Tensor:
    """Apply the rotary embedding to the patches' queries or keys."""
    prefix = attention.num_prefix_tokens
    patches_BAPD = apply_rot_embed_cat(queries_BAND[:, :, prefix:], rope, half=attention.rotate_half)
    return torch.cat([queries_BAND[:, :, :prefix], patches_BAPD], dim=2).type_as(queries_BAND)


def _bias(attention: nn.Module) -> Tensor | None:
    """Return the bias of EVA's joint projection, which is 0 for keys; None if the projection layer has its own bias."""
    if getattr(attention, "q_bias", None) is None:
        return None
    return torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
