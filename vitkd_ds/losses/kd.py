"""Hinton's knowledge distillation on logits."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


def kd_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over images.

    Args:
        student_logits_BK: student logits; they get the gradient.
        teacher_logits_BK: teacher logits; they are detached.
        temperature: T, which divides both logits; T^2 keeps the gradient's size when T changes.

    Returns:
        fp32 scalar, mean over images (a mean over images and classes would be K times weaker).

    Raises:
        ValueError: the shapes differ.

    **Source**: arXiv 1503.02531, section 2; cls_KD `kd.py`.

    **Differs**: cls_KD uses the cross-entropy form and its own weight, so its value is
    alpha * (this + T^2 * entropy of the teacher), and its gradient alpha times ours; softmax and sum in at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    log_student_BK = F.log_softmax(at_least_fp32(student_logits_BK) / temperature, dim=1)
    log_teacher_BK = F.log_softmax(at_least_fp32(teacher_logits_BK.detach()) / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)
