"""Transformed teacher matching (TTM, WTTM): match a power of the teacher's probabilities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class WTTM(LossPart):
    """Loss term `wttm`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `wttm_loss`."""
        numbers = {"gamma": self.term.gamma, "weighted": self.term.weighted}
        return {"wttm": wttm_loss(student.logits_BK, teacher.logits_BK, **numbers)}


def wttm_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, gamma: float, weighted: bool = True) -> Tensor:
    """Compute U KL(q || softmax(student)), averaged over images.

    Here q_k = p_k^gamma / U and U = sum_k p_k^gamma, where p is the softmax of the teacher's logits.

    Args:
        student_logits_BK: student logits, used without a temperature; they receive gradients.
        teacher_logits_BK: teacher logits; they are detached.
        gamma: power of the teacher's probabilities; it equals 1 / temperature. A value below 1 makes them softer, a
            value above 1 sharper.
        weighted: if True, weight each image by U (WTTM); if False, leave out the factor U (TTM). With gamma < 1, U is
            at least 1 and increases with the teacher's uncertainty. With gamma > 1, U is at most 1 and increases with
            the teacher's confidence.

    Returns:
        fp32 scalar. It is added to the usual cross-entropy and does not replace it.

    Raises:
        ValueError: the logits' shapes differ or are not [B, K].

    **Source**: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, and its code,
    `wttm.py` and `ttm.py`.

    **Differs**: powers and U are computed from log-probabilities, so that extreme logits give finite values. The
    computation is in at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    scaled_BK = gamma * F.log_softmax(at_least_fp32(teacher_logits_BK.detach()), dim=1)
    log_sum_B1 = torch.logsumexp(scaled_BK, dim=1, keepdim=True)
    log_student_BK = F.log_softmax(at_least_fp32(student_logits_BK), dim=1)
    divergence_B = F.kl_div(log_student_BK, scaled_BK - log_sum_B1, reduction="none", log_target=True).sum(1)
    return (log_sum_B1[:, 0].exp() * divergence_B if weighted else divergence_B).mean()
