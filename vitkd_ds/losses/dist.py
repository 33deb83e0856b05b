"""DIST: correlate predicted probabilities within images and within classes."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class DIST(LossPart):
    """Loss term `dist`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `dist_loss`. With scope=all_ranks, the images of all ranks' micro-batches are compared together."""
        student_BK, teacher_BK = student.logits_BK, teacher.logits_BK
        if self.term.scope == "all_ranks":
            student_BK, teacher_BK = self.gather(student_BK), self.gather(teacher_BK.detach())
        return {"dist": dist_loss(student_BK, teacher_BK, beta=self.term.beta, gamma=self.term.gamma)}


def dist_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Compute beta (1 - mean_images rho) + gamma (1 - mean_classes rho).

    rho is Pearson's correlation between the student's and the teacher's probabilities. The first mean is over images,
    and rho correlates the probabilities of all classes for one image. The second mean is over classes, and rho
    correlates the probabilities of one class for all images.

    Args:
        student_logits_BK: student logits; they receive gradients.
        teacher_logits_BK: teacher logits; they are detached.
        beta: weight of the correlations within images.
        gamma: weight of the correlations within classes. Their values depend on the number of images. With a single
            image, this part of the loss is constant.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the logits' shapes differ or are not [B, K].

    **Source**: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, and its code,
    `dist_kd.py`.

    **Differs**: the computation is in at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    student_BK = F.softmax(at_least_fp32(student_logits_BK), dim=1)
    teacher_BK = F.softmax(at_least_fp32(teacher_logits_BK.detach()), dim=1)
    within_images, within_classes = (1 - _pearson(student_BK, teacher_BK, dim).mean() for dim in (1, 0))
    return beta * within_images + gamma * within_classes


def _pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    # sqrt has an infinite gradient at 0 (a constant row), so its argument is clamped.
    norms = [each.square().sum(dim).clamp_min(1e-30).sqrt() for each in (x, y)]
    return (x * y).sum(dim) / (norms[0] * norms[1] + 1e-8)
