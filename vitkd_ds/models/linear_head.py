"""Linear probe that computes class logits from a headless teacher's features, as published for DINOv3."""

from pathlib import Path

import torch
from torch import Tensor, nn

from vitkd_ds.models.weights import load_state_dict_file


class LinearHead(nn.Linear):
    """Linear classifier on the pooled feature, or on the pooled feature and the mean patch token.

    The weight's number of columns shows which input it needs. The pooled feature is `pooled_BD` of `tap_features`: the
    class token, or the mean patch token of a model without a class token.

    **Source**: linear evaluation of DINOv2 and DINOv3, which concatenate the two in this order.
    """

    def forward(self, pooled_BD: Tensor, final_BPD: Tensor) -> Tensor:
        """Compute logits [B, K]."""
        if self.in_features == pooled_BD.shape[1]:
            return super().forward(pooled_BD)
        return super().forward(torch.cat([pooled_BD, final_BPD.mean(dim=1)], dim=1))


def load_head(
    path: Path, *, key: str = "teacher.head", dim: int, num_classes: int, has_class_token: bool
) -> LinearHead:
    """Load a linear probe from a file with one weight and at most one bias. Their names do not matter.

    The weight is [K, dim]. If the model has a class token, the weight may instead be [K, 2 dim]. The bias is [K].

    Args:
        path: weight file.
        key: setting to name in error messages.
        dim: feature width of the model.
        num_classes: K, the number of classes.
        has_class_token: whether the model has a class token.

    Raises:
        ValueError: the file is missing or its tensors do not fit.
    """
    if not path.is_file():
        raise ValueError(f"{key}: no file at {path}. Check the path.")
    state = load_state_dict_file(path)
    weights, biases = ([tensor for tensor in state.values() if tensor.ndim == ndim] for ndim in (2, 1))
    remedy = "Save only the probe, for these classes and this teacher."
    if len(weights) != 1 or len(biases) > 1 or len(state) != len(weights) + len(biases):
        shapes = {name: tuple(tensor.shape) for name, tensor in list(state.items())[:4]}
        raise ValueError(
            f"{key}={path} must contain one weight [K, D] and at most one bias [K], got {shapes}. {remedy}"
        )
    found, wanted = tuple(weights[0].shape), [(num_classes, dim), (num_classes, 2 * dim)][: 1 + has_class_token]
    if found not in wanted or any(len(bias) != num_classes for bias in biases):
        bias = f" and a bias of length {len(biases[0])}" if biases else ""
        raise ValueError(
            f"{key}={path} has a weight of shape {found}{bias}. For data.num_classes={num_classes} and the teacher's "
            f"width {dim}, the shape must be {' or '.join(map(str, wanted))}, with a bias of length {num_classes}. "
            f"{remedy}"
        )
    with torch.device("cpu"):  # even if the model is on the meta device
        head = LinearHead(found[1], found[0], bias=bool(biases))
    head.load_state_dict(dict(zip(("weight", "bias"), weights + biases)))
    return head
