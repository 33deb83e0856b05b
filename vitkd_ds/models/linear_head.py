"""A linear probe that gives a headless teacher logits, as they are published for DINOv3."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vitkd_ds.models.weights import load_state_dict_file


class LinearHead(nn.Linear):
    """Logits of a model's class token, or of its class token and the mean of its patch tokens, as `tap_features` gives
    them: which of the two, the head's width says. Of a model without a class token they are those of the mean.

    **Source**: DINOv2's and DINOv3's linear evaluation, which concatenate in this order.
    """

    def forward(self, pooled_BD: Tensor, final_BPD: Tensor) -> Tensor:
        """Compute logits [B, K]."""
        if self.in_features == pooled_BD.shape[1]:
            return super().forward(pooled_BD)
        return super().forward(torch.cat([pooled_BD, final_BPD.mean(dim=1)], dim=1))


def load_head(
    path: Path, *, key: str = "teacher.head", dim: int, num_classes: int, has_class_token: bool
) -> LinearHead:
    """Load a probe of `num_classes` for features of width `dim` from a file with one weight [K, dim], or for a model
    with a class token [K, 2 dim], and at most one bias [K], under any names. `key` names the setting in its messages.

    Raises:
        ValueError: the file is none such.
    """
    if not path.is_file():
        raise ValueError(f"{key} must be an existing file, found none at {path}: check the path")
    state = load_state_dict_file(path)
    weights, biases = ([tensor for tensor in state.values() if tensor.ndim == ndim] for ndim in (2, 1))
    advice = f"in {path}: save the probe alone, for these classes and this teacher"
    if len(weights) != 1 or len(biases) > 1 or len(state) != len(weights) + len(biases):
        shapes = {name: tuple(tensor.shape) for name, tensor in list(state.items())[:4]}
        raise ValueError(f"{key} must hold one weight [K, D] and at most one bias [K], found {shapes} {advice}")
    found, wanted = tuple(weights[0].shape), [(num_classes, dim), (num_classes, 2 * dim)][: 1 + has_class_token]
    if found not in wanted or any(len(bias) != num_classes for bias in biases):
        bias = f" and a bias of {len(biases[0])}" if biases else ""
        raise ValueError(
            f"{key} must have a weight of shape {' or '.join(map(str, wanted))} and a bias of {num_classes}, "
            f"for data.num_classes={num_classes} and the teacher's width, found {found}{bias} {advice}"
        )
    with torch.device("cpu"):  # also where the model around it is on the meta device
        head = LinearHead(found[1], found[0], bias=bool(biases))
    head.load_state_dict(dict(zip(("weight", "bias"), weights + biases)))
    return head
