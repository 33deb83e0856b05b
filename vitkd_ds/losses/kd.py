"""Hinton's knowledge distillation on logits (KD)."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits, standardized


class KD(LossPart):
    """Loss term `kd`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `kd_loss`."""
        numbers = {"temperature": self.term.temperature, "standardize": self.term.standardize}
        return {"kd": kd_loss(student.logits_BK, teacher.logits_BK, **numbers)}


def kd_loss(
    student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, temperature: float = 1.0, standardize: bool = False
) -> Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over images.

    Args:
        student_logits_BK: student logits; they receive gradients.
        teacher_logits_BK: teacher logits; they are detached.
        temperature: T, the divisor of both models' logits. The factor T^2 makes the scale of the gradient independent
            of T.
        standardize: first standardise each image's logits, in both models, to mean 0 and standard deviation 1. The
            student then need not match the scale of the teacher's logits.

    Returns:
        fp32 scalar. (An average over images and classes would be K times smaller.)

    Raises:
        ValueError: the logits' shapes differ or are not [B, K].

    **Source**: arXiv 1503.02531, section 2, and cls_KD `kd.py`; for `standardize`, arXiv 2403.01427 and its code.

    **Differs**: cls_KD computes a cross-entropy instead of the KL divergence, and multiplies it by a weight alpha. Its
    value is alpha * (kd_loss + T^2 * H), where H is the entropy of the teacher's softmax at temperature T. Its gradient
    is alpha times the gradient of kd_loss. Softmax and sum are computed in at least fp32 here.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    student_BK, teacher_BK = at_least_fp32(student_logits_BK), at_least_fp32(teacher_logits_BK.detach())
    if standardize:
        student_BK, teacher_BK = standardized(student_BK), standardized(teacher_BK)
    log_student_BK = F.log_softmax(student_BK / temperature, dim=1)
    log_teacher_BK = F.log_softmax(teacher_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)
