"""DeiT's distillation token: the second head of a distilled student learns from the teacher."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.kd import kd_loss
from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class DistillationToken(LossPart):
    """The term `distillation_token`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """`hard_distillation_loss` or `kd_loss` of the second head's logits.

        **Source**: DeiT (arXiv 2012.12877) and its code, `losses.py`.

        **Differs**: DeiT's soft form divides by images and classes, ours by images, so K of its weights are one here.
        """
        if self.term.kind == "hard":
            return {"distillation_token": hard_distillation_loss(student.distillation_BK, teacher.logits_BK)}
        soft = kd_loss(student.distillation_BK, teacher.logits_BK, temperature=self.term.temperature)
        return {"distillation_token": soft}


def hard_distillation_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> Tensor:
    """Compute the cross-entropy with the teacher's most likely class, mean over images: an fp32 scalar.

    Raises:
        ValueError: the shapes differ.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    return F.cross_entropy(at_least_fp32(student_logits_BK), teacher_logits_BK.argmax(1))
