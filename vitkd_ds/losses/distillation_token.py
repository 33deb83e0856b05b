"""DeiT's distillation token: a distilled student's second head learns from the teacher."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.kd import kd_loss
from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class DistillationToken(LossPart):
    """Loss term `distillation_token`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """Compute `hard_distillation_loss` (for kind=hard) or `kd_loss` (for kind=soft) of the second head's logits.

        **Source**: DeiT (arXiv 2012.12877) and its code, `losses.py`.

        **Differs**: DeiT averages the soft form over images and K classes, while this code averages it over images
        only. A weight of 1 here therefore equals a weight of K in DeiT.
        """
        if self.term.kind == "hard":
            return {"distillation_token": hard_distillation_loss(student.distillation_BK, teacher.logits_BK)}
        soft = kd_loss(student.distillation_BK, teacher.logits_BK, temperature=self.term.temperature)
        return {"distillation_token": soft}


def hard_distillation_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """Compute the cross-entropy with the teacher's most likely class as label, averaged over images.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the logits' shapes differ or are not [B, K].
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    return F.cross_entropy(at_least_fp32(student_logits_BK), teacher_logits_BK.argmax(1))
