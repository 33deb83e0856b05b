"""DIST: match the correlations of probabilities, within an image and within a class, instead of their values."""

import torch.nn.functional as F
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart
from vitkd_ds.losses.precision import at_least_fp32, check_same_logits


class DIST(LossPart):
    """The term `dist`."""

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `dist_loss`; with scope=all_ranks its images are those of the micro-batches of all ranks."""
        student_BK, teacher_BK = student.logits_BK, teacher.logits_BK
        if self.term.scope == "all_ranks":
            student_BK, teacher_BK = self.gather(student_BK), self.gather(teacher_BK.detach())
        return {"dist": dist_loss(student_BK, teacher_BK, beta=self.term.beta, gamma=self.term.gamma)}


def dist_loss(student_logits_BK: Tensor, teacher_logits_BK: Tensor, *, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Compute beta (1 - mean_images rho) + gamma (1 - mean_classes rho), where rho is Pearson's correlation of the two
    models' probabilities: of an image over the classes, and of a class over the images.

    Args:
        student_logits_BK: student logits; they get the gradient.
        teacher_logits_BK: teacher logits; they are detached.
        beta: weight of the relations within an image.
        gamma: weight of the relations within a class. They are over the given images, so their meaning changes with the
            number of these; with one image the part is constant.

    Returns:
        fp32 scalar.

    Raises:
        ValueError: the shapes differ.

    **Source**: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022; its code, `dist_kd.py`.

    **Differs**: at least fp32.
    """
    check_same_logits(student_logits_BK, teacher_logits_BK)
    student_BK = F.softmax(at_least_fp32(student_logits_BK), dim=1)
    teacher_BK = F.softmax(at_least_fp32(teacher_logits_BK.detach()), dim=1)
    within_images, within_classes = (1 - _pearson(student_BK, teacher_BK, dim).mean() for dim in (1, 0))
    return beta * within_images + gamma * within_classes


def _pearson(x: Tensor, y: Tensor, dim: int) -> Tensor:
    x, y = x - x.mean(dim, keepdim=True), y - y.mean(dim, keepdim=True)
    # The norm of a constant row has no gradient, hence the square root of what is above 0.
    norms = [each.square().sum(dim).clamp_min(1e-30).sqrt() for each in (x, y)]
    return (x * y).sum(dim) / (norms[0] * norms[1] + 1e-8)
