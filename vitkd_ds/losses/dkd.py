"""Decoupled knowledge distillation (DKD): separate terms for the label and for the other classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.nkd import other_logits
from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class DKD(LossPart):
    """Loss term `dkd`. Labels may be smoothed but not mixed: the largest entry of a target determines its label."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `dkd_loss`."""
        numbers = {"alpha": self.term.alpha, "beta": self.term.beta, "temperature": self.term.temperature}
        return {"dkd": dkd_loss(student.logits_BK, teacher.logits_BK, targets_BK.argmax(1), **numbers)}


def dkd_loss(
    student_logits_BK: Tensor,
    teacher_logits_BK: Tensor,
    labels_B: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """Compute T^2 (alpha KL(b_T || b_S) + beta KL(n_T || n_S)), averaged over images.

    b and n are computed from logits divided by the temperature; b_T and n_T belong to the teacher, b_S and n_S to the
    student. b is the pair of the label's probability and the total probability of the other classes. n is the softmax
    over the other K - 1 classes.

    Args:
        student_logits_BK: student logits; they receive gradients.
        teacher_logits_BK: teacher logits; they are detached.
        labels_B: integer class indices. DKD is not defined for mixed labels; use NKD for them.
        alpha: weight of the first KL divergence, which compares the label with all other classes together.
        beta: weight of the second KL divergence, which compares the other classes among themselves.
        temperature: T, the divisor of all logits; the loss has the factor T^2.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the logits' shapes differ or are not [B, K], or labels_B does not contain integer class indices [B].

    **Source**: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022 (arXiv 2203.08679), as implemented
    in `DKD.py` of the code of logit standardisation.

    **Differs**: the label's logit is removed from the second KL divergence, while the source subtracts 1,000 from it.
    Log-probabilities are computed directly from logits. The computation is in at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    if labels_B.shape != student_logits_BK.shape[:1] or labels_B.is_floating_point():
        raise ValueError(
            f"labels must be integer class indices [{len(student_logits_BK)}], got {labels_B.dtype} of shape "
            f"{tuple(labels_B.shape)}. DKD is not defined for mixed labels; use NKD."
        )
    label_B1 = labels_B.long()[:, None]
    pairs, others = [], []
    for logits_BK in (student_logits_BK, teacher_logits_BK.detach()):
        scaled_BK = at_least_fp32(logits_BK) / temperature
        rest = other_logits(scaled_BK, label_B1)
        pair_B2 = torch.stack([scaled_BK.gather(1, label_B1)[:, 0], torch.logsumexp(rest, dim=1)], dim=1)
        pairs.append(F.log_softmax(pair_B2, dim=1))
        others.append(F.log_softmax(rest, dim=1))
    on_label, on_others = (
        F.kl_div(student, teacher, reduction="batchmean", log_target=True) for student, teacher in (pairs, others)
    )
    return temperature**2 * (alpha * on_label + beta * on_others)
