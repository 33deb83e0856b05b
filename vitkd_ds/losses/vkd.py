"""VkD: match one pooled vector per image through an orthogonal projector."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo
from vitkd_ds.losses.precision import at_least_fp32


class OrthogonalProjector(nn.Module):
    """Linear map from width Ds to width Dt, without bias and with an orthogonal weight.

    The map preserves lengths and angles if Dt >= Ds, and projects onto Dt orthogonal axes if Dt < Ds. The weight
    consists of the first columns of a product of Householder reflections. The reflection vectors are the columns of the
    parameter's lower triangle. Every value of the parameter gives an orthogonal weight, so AdamW, rounding to bf16 and
    partitioning over ranks cannot break orthogonality.

    **Source**: torch's `nn.utils.parametrizations.orthogonal` with `orthogonal_map="householder"`.

    **Differs**: the product is computed in the compact form I - V T V', because torch's form makes thousands of calls
    in backward. The computation is in at least fp32 for any dtype of the parameter. The same form is used for Ds = Dt.
    There is no base matrix, so weight decay pulls the weight towards a fixed projection, not towards the random start.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.is_wide = teacher_dim < student_dim
        tall = torch.empty(max(student_dim, teacher_dim), min(student_dim, teacher_dim))
        # torch has no geqrf on the meta device, where only the shape matters.
        self.reflections = nn.Parameter(tall if tall.is_meta else torch.geqrf(nn.init.normal_(tall))[0])

    def weight(self) -> Tensor:
        """Return the weight [Dt, Ds] in at least fp32. Call this method outside autocast."""
        k = self.reflections.shape[1]
        vectors = torch.tril(at_least_fp32(self.reflections), diagonal=-1)
        vectors = vectors + torch.eye(*vectors.shape, dtype=vectors.dtype, device=vectors.device)
        products = vectors.T @ vectors
        inner = torch.triu(products, diagonal=1) + torch.diag(products.diagonal() / 2)
        start = torch.eye(*vectors.shape, dtype=vectors.dtype, device=vectors.device)
        columns = start - vectors @ torch.linalg.solve_triangular(inner, vectors[:k].T, upper=True)
        return columns.T if self.is_wide else columns

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Project [B, Ds] to [B, Dt] in at least fp32."""
        with torch.autocast(pooled_BD.device.type, enabled=False):
            return F.linear(at_least_fp32(pooled_BD), self.weight())


class VkD(LossPart):
    """Loss term `vkd`: match the mean of the student's final patch tokens to the mean of the teacher's.

    For a convolutional teacher, the positions of its last feature map take the place of patch tokens.
    """

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        self.projector = OrthogonalProjector(pair.student_dim, pair.teacher_dim)

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `vkd_loss`."""
        pooled_BD = at_least_fp32(student.final_BPD).mean(dim=1)
        return {"vkd": vkd_loss(self.projector(pooled_BD), at_least_fp32(teacher.final_BPD).mean(dim=1))}


def vkd_loss(projected_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Compute the smooth L1 distance between projected student vectors and LayerNormed teacher vectors.

    The distance is averaged over images and channels.

    Args:
        projected_BD: student's patch tokens, averaged per image and projected to the teacher's width [B, Dt]; they
            receive gradients.
        teacher_BD: teacher's patch tokens or feature-map positions, averaged per image [B, Dt]; they are detached.

    Returns:
        fp32 scalar.

    **Source**: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024,
    and its code, `engine.py`.

    **Differs**: the computation is in at least fp32. Like the source, this code averages only patch tokens.
    """
    target_BD = at_least_fp32(teacher_BD.detach())
    return F.smooth_l1_loss(at_least_fp32(projected_BD), F.layer_norm(target_BD, target_BD.shape[1:]))
