"""Initialise a student with weights selected from a wider or deeper model of the same class.

**Source**: Xu et al., "Initializing Models with Larger Ones" (ICLR 2024) and its code, `weight_selection.py`. The
student's block i is copied from block i of the larger model. Of its w channels, every (w / s)-th is selected, which
gives the student's s channels. The classifier stays random.

**Differs**:

- If s does not divide w, the channels are `round(linspace(0, w - 1, s))`. The source fails in this case.
- With `heads="whole"`, whole attention heads are selected. The rows of queries, keys and values and the columns of
  `proj` have the same indices.
- With `blocks="even"`, the blocks are spread evenly over the depth.
- If only the larger model has LayerScale, it is multiplied into `attn.proj` and `mlp.fc2`. If only the student has a
  position embedding of the class token, it is set to 0. If only the larger model has one, it is added to the class
  token. These conversions are exact.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vitkd_ds.models.features import TOKEN_MODELS

AXES = {
    r"norm\d\.\w+|ls\d\.gamma|gamma_\d": ("width",),
    r"attn\.qkv\.weight|attn\.[qkv]_proj\.weight": ("qkv", "width"),
    r"attn\.qkv\.bias|attn\.[qkv]_proj\.bias|attn\.[qv]_bias|attn\.norm\.\w+": ("qkv",),
    r"attn\.[qk]_norm\.\w+": ("head",),
    r"attn\.proj\.weight": ("width", "qkv"),
    r"attn\.proj\.bias|mlp\.fc2\.bias": ("width",),
    r"mlp\.fc1(_g|_x)?\.weight": ("hidden", "width"),
    r"mlp\.fc1(_g|_x)?\.bias|mlp\.norm\.\w+": ("hidden",),
    r"mlp\.fc2\.weight": ("width", "hidden"),
}
"""Names of a block's tensors -> axes of their first dimensions. Fused tensors stack several parts along one axis."""
OUTSIDE = {
    r"patch_embed\.proj\.\w+|norm(_pre)?\.\w+|fc_norm\.\w+": 0,
    r"cls_token|reg_token|dist_token|pos_embed": 2,
}
"""Names of tensors outside the blocks -> their dimension that indexes channels."""
SCALED = {"ls1.gamma": "attn.proj", "gamma_1": "attn.proj", "ls2.gamma": "mlp.fc2", "gamma_2": "mlp.fc2"}
"""LayerScale -> the layer whose output it multiplies."""


class Selection(NamedTuple):
    """Chosen indices and the sizes that they index."""

    chosen: Tensor
    size: int


def indices(size: int, wanted: int) -> Tensor:
    """Return `wanted` ascending indices below `size`, int64, evenly spread.

    Raises:
        ValueError: `wanted` exceeds `size`.
    """
    if wanted > size:
        raise ValueError(f"cannot select {wanted} of {size}")
    if size % wanted == 0:
        return torch.arange(wanted) * (size // wanted)
    return torch.linspace(0, size - 1, wanted, dtype=torch.float64).round().long()


def select_weights(student: nn.Module, source: nn.Module, *, heads: str, blocks: str) -> str:
    """Copy selected weights of `source` into `student`, in place; return a description of what was taken.

    Args:
        student, source: instances of `vitkd_ds.models.features.TOKEN_MODELS` on the CPU, for the same patch grid.
        heads: "whole" selects whole attention heads; "even" selects channels from all heads.
        blocks: "first" takes block i from block i; "even" spreads the blocks over the source's depth.

    Raises:
        ValueError: the source is smaller than the student, or differs from it in more than size.
    """
    _check_kinds(student, source)
    _check_rotary(student, source, heads)
    try:
        picked = _picked(student, source, heads)
        depth = len(student.blocks)
        spread = indices(len(source.blocks), depth).tolist()
    except ValueError as error:
        raise ValueError(
            f"the student is larger than the model to select weights from: {error}. Choose a smaller student."
        ) from None
    numbers = spread if blocks == "even" else range(depth)
    state = student.state_dict()
    taken = _outside_blocks(state, source.state_dict(), picked["width"], student)
    for number, block in enumerate(numbers):
        found = _folded(source.blocks[block].state_dict(), student.blocks[number].state_dict())
        taken |= {f"blocks.{number}.{name}": _of_block(name, tensor, picked) for name, tensor in found.items()}
    _check_shapes(taken, state)
    student.load_state_dict(state | taken)
    kept = [name for name in state if name not in taken]
    return (
        f"{student.embed_dim} of {source.embed_dim} channels, {_num_heads(student)} of {_num_heads(source)} heads "
        f"({heads}), {_hidden(student)} of {_hidden(source)} hidden units, and blocks "
        f"{', '.join(map(str, numbers))} of {len(source.blocks)}; random: {', '.join(kept) or 'nothing'}"
    )


def _picked(student: nn.Module, source: nn.Module, heads: str) -> dict[str, Selection]:
    """Return the selected indices of each axis in AXES. Raise ValueError if the student is larger."""
    sizes = {
        "width": (source.embed_dim, student.embed_dim),
        "head": (_head_dim(source), _head_dim(student)),
        "hidden": (_hidden(source), _hidden(student)),
    }
    picked = {"qkv": _qkv(student, source, heads)}
    return picked | {axis: Selection(indices(size, wanted), size) for axis, (size, wanted) in sizes.items()}


def _check_shapes(taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the selected weights have the shapes of the student's own."""
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"the student's {name} has shape {tuple(own[name].shape)}, but its selected weights have "
                f"{tuple(tensor.shape)}. Set student.model_args to match the model to select from."
            )


def _check_kinds(student: nn.Module, source: nn.Module) -> None:
    """Raise ValueError if models differ in class or patches."""
    kinds = [[kind.__name__ for kind in TOKEN_MODELS if isinstance(model, kind)] for model in (student, source)]
    if kinds[0] != kinds[1] or not kinds[0]:
        raise ValueError(
            f"weights can be selected only between two models of class "
            f"{' or '.join(kind.__name__ for kind in TOKEN_MODELS)}, but the student is of class "
            f"{type(student).__name__}, and the other model of class {type(source).__name__}. Choose another student."
        )
    sizes = [(model.patch_embed.patch_size, model.patch_embed.grid_size) for model in (student, source)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the student's patch size and grid are {sizes[0]}, but those of the model to select weights from are "
            f"{sizes[1]}. Choose a student with the same patches."
        )


def _check_rotary(student: nn.Module, source: nn.Module, heads: str) -> None:
    """Raise ValueError if rotary embeddings would act on other channels than in the source."""
    has_rope = getattr(student, "rope", None) is not None
    if has_rope and (heads == "even" or _head_dim(student) != _head_dim(source)):
        raise ValueError(
            f"rotary position embeddings need whole heads of equal size, got student.select_heads={heads} and "
            f"{_head_dim(student)} channels per head for {_head_dim(source)}. Set --student.select_heads=whole, and "
            "embed_dim and num_heads in student.model_args."
        )


def _qkv(student: nn.Module, source: nn.Module, heads: str) -> Selection:
    """Return the selected channels of queries, keys and values."""
    size = _num_heads(source) * _head_dim(source)
    if heads == "even":
        return Selection(indices(size, _num_heads(student) * _head_dim(student)), size)
    first = indices(_num_heads(source), _num_heads(student)) * _head_dim(source)
    within = indices(_head_dim(source), _head_dim(student))
    return Selection((first.unsqueeze(1) + within).flatten(), size)


def _folded(source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a block's tensors under the student's names.

    LayerScale that only the source has is folded into other weights. LayerScale that only the student has is set to 1.

    Raises:
        ValueError: the blocks differ in other tensors.
    """
    found = dict(source)
    for name in SCALED.keys() & found.keys() - own.keys():
        scale = found.pop(name)
        for key in [key for key in found if key.startswith(f"{SCALED[name]}.")]:  # a weight, and perhaps a bias
            found[key] = found[key] * (scale.unsqueeze(1) if found[key].ndim == 2 else scale)
    for name in SCALED.keys() & own.keys() - found.keys():
        found[name] = torch.ones_like(found["norm1.weight"])
    if others := found.keys() ^ own.keys():
        raise ValueError(
            f"the blocks of the student and of the model to select weights from differ in {', '.join(sorted(others))}. "
            "Choose a student of the same kind, or set student.model_args to match."
        )
    return found


def _of_block(name: str, tensor: Tensor, picked: Mapping[str, Selection]) -> Tensor:
    """Return the selected part of a block's tensor."""
    axes = next((axes for pattern, axes in AXES.items() if re.fullmatch(pattern, name)), None)
    if axes is None:
        raise ValueError(
            f"cannot select from a block's {name}, which is unknown here. Initialise the student in another way."
        )
    for dim, axis in enumerate(axes):
        chosen, size = picked[axis]
        parts = torch.arange(tensor.shape[dim] // size) * size
        tensor = tensor.index_select(dim, (parts.unsqueeze(1) + chosen).flatten())
    return tensor


def _outside_blocks(
    own: Mapping[str, Tensor], source: Mapping[str, Tensor], width: Selection, student: nn.Module
) -> dict[str, Tensor]:
    """Return the selected tensors outside the blocks; the classifier and tensors that the source lacks are absent."""
    found = {}
    for pattern, dim in OUTSIDE.items():
        for name in own.keys() & source.keys():
            if re.fullmatch(pattern, name):
                found[name] = source[name].index_select(dim, width.chosen)
    if "pos_embed" in found:
        num_patches = student.patch_embed.num_patches
        prefix, patches = found["pos_embed"].split([found["pos_embed"].shape[1] - num_patches, num_patches], dim=1)
        wanted = own["pos_embed"].shape[1] - num_patches
        if not wanted and prefix.shape[1]:
            found["cls_token"] = found["cls_token"] + prefix[:, :1]
        rest = torch.zeros_like(own["pos_embed"][:, : max(0, wanted - prefix.shape[1])])
        found["pos_embed"] = torch.cat([prefix[:, :wanted], rest, patches], dim=1)
    return found


def _num_heads(model: nn.Module) -> int:
    return model.blocks[0].attn.num_heads


def _head_dim(model: nn.Module) -> int:
    return model.blocks[0].attn.proj.in_features // _num_heads(model)


def _hidden(model: nn.Module) -> int:
    return model.blocks[0].mlp.fc2.in_features
