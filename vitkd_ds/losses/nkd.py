"""Normalised knowledge distillation (NKD): separate terms for the target and the other classes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class NKD(LossPart):
    """Loss term `nkd`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `nkd_loss`."""
        numbers = {"temperature": self.term.temperature, "gamma": self.term.gamma}
        return {"nkd": nkd_loss(student.logits_BK, teacher.logits_BK, targets_BK, **numbers)}


def nkd_loss(
    student_logits_BK: Tensor,
    teacher_logits_BK: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """Compute - T_t log S_t - gamma tau^2 sum_{i != t} That_i log Shat_i, averaged over images.

    S and T are the softmaxes of the student's and the teacher's logits without temperature; t is the target class. Shat
    and That are the softmaxes of the other K - 1 logits divided by tau. The target's logit is removed from them, not
    set to zero.

    Args:
        student_logits_BK: student logits; they receive gradients.
        teacher_logits_BK: teacher logits; they are detached.
        targets: integer class indices [B], or soft labels [B, K]. The target is the class with the largest entry. A
            label from Mixup or CutMix has two classes; the one with the smaller entry counts as a non-target class.
        temperature: tau, the divisor of the logits in the second term.
        gamma: weight of the second term.

    Returns:
        fp32 scalar. It is added to the usual cross-entropy and does not replace it.

    Raises:
        ValueError: the logits' shapes differ or are not [B, K], or `targets` has neither of the two forms.

    **Source**: arXiv 2303.13005; cls_KD `nkd.py`.

    **Differs**: log-softmax is used instead of the logarithm of a softmax, so that extreme logits give finite values.
    The computation is in at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    target_B1 = _target_indices(targets, student_logits_BK)[:, None]
    student_BK, teacher_BK = at_least_fp32(student_logits_BK), at_least_fp32(teacher_logits_BK.detach())

    teacher_t_B1 = F.softmax(teacher_BK, dim=1).gather(1, target_B1)
    log_student_t_B1 = F.log_softmax(student_BK, dim=1).gather(1, target_B1)
    target_term = -(teacher_t_B1 * log_student_t_B1).mean()

    log_student_others = F.log_softmax(other_logits(student_BK, target_B1) / temperature, dim=1)
    teacher_others = F.softmax(other_logits(teacher_BK, target_B1) / temperature, dim=1)
    other_term = -(teacher_others * log_student_others).sum(1).mean()
    return target_term + gamma * temperature**2 * other_term


def other_logits(logits_BK: Tensor, target_B1: Tensor) -> Tensor:
    """Return the K - 1 logits of each image without the target's logit, in the order of the classes."""
    others = torch.arange(logits_BK.shape[1] - 1, device=logits_BK.device)[None]
    others = others + (others >= target_B1)  # unlike a boolean mask, this does not synchronise with the device
    return logits_BK.gather(1, others)


def _target_indices(targets: Tensor, logits_BK: Tensor) -> Tensor:
    if targets.shape == logits_BK.shape:
        return targets.argmax(dim=1)
    if targets.ndim == 1 and len(targets) == len(logits_BK) and not targets.is_floating_point():
        return targets.long()
    raise ValueError(
        f"targets must be integer class indices [{len(logits_BK)}] or soft labels {tuple(logits_BK.shape)}, got "
        f"{targets.dtype} of shape {tuple(targets.shape)}"
    )
