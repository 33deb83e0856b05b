"""Cross-entropy with soft targets from Mixup, CutMix and label smoothing."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32


class CrossEntropy(LossPart):
    """Loss term `ce`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `soft_cross_entropy`."""
        return {"ce": soft_cross_entropy(student.logits_BK, targets_BK)}


def soft_cross_entropy(student_logits_BK: Tensor, targets_BK: Tensor) -> Tensor:
    """Compute - sum_k targets_k log softmax(student)_k, averaged over images.

    Args:
        student_logits_BK: student logits; they receive gradients.
        targets_BK: target probabilities after mixing and label smoothing; they sum to 1 per image.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the shapes of logits and targets differ.

    **Source**: the cross-entropy for mmcls's label-smoothing mode `original`, which cls_KD uses.
    `vitkd_ds.train.mixing` smooths and mixes the labels.

    **Differs**: softmax and sum are computed in at least fp32.
    """
    if student_logits_BK.shape != targets_BK.shape:
        raise ValueError(
            f"targets must be soft labels of the logits' shape {tuple(student_logits_BK.shape)}, got "
            f"{tuple(targets_BK.shape)}. Convert class indices to one-hot rows first."
        )
    log_student_BK = F.log_softmax(at_least_fp32(student_logits_BK), dim=1)
    return -(at_least_fp32(targets_BK) * log_student_BK).sum(1).mean()
