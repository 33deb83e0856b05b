"""VkD: one pooled vector of an image, through a projector that stays orthogonal."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo
from vitkd_ds.losses.precision import at_least_fp32


class OrthogonalProjector(nn.Module):
    """A linear map Ds -> Dt without bias that keeps lengths and angles (Dt >= Ds), or projects onto Ds axes that are
    orthogonal (Dt < Ds).

    The weight is the first columns of a product of Householder reflections, whose vectors are the columns of the
    parameter's lower triangle. Any value of the parameter gives an orthogonal weight, whatever AdamW, rounding to bf16
    and partitioning do to it.

    **Source**: as torch's `nn.utils.parametrizations.orthogonal` with its map "householder".

    **Differs**: the product in its compact form I - V T V', as torch's own takes thousands of calls backwards; at least
    fp32 whatever the parameter's dtype; also where Ds = Dt; no base beside the parameter, so weight decay pulls towards
    a fixed projection and not towards the random start.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.is_wide = teacher_dim < student_dim
        tall = torch.empty(max(student_dim, teacher_dim), min(student_dim, teacher_dim))
        # torch has no geqrf on meta, where only the shape counts.
        self.reflections = nn.Parameter(tall if tall.is_meta else torch.geqrf(nn.init.normal_(tall))[0])

    def weight(self) -> Tensor:
        """The weight [Dt, Ds], at least fp32; to be called outside autocast."""
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
    """The term `vkd`: the mean of the student's final patch tokens against the mean of the teacher's tokens or map."""

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        self.projector = OrthogonalProjector(pair.student_dim, pair.teacher_dim)

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `vkd_loss`."""
        pooled_BD = at_least_fp32(student.final_BPD).mean(dim=1)
        return {"vkd": vkd_loss(self.projector(pooled_BD), at_least_fp32(teacher.final_BPD).mean(dim=1))}


def vkd_loss(projected_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Compute the smooth L1 distance of a projected vector to the LayerNormed one of the teacher, mean over elements.

    Args:
        projected_BD: the student's pooled tokens, projected to the teacher's width [B, Dt]; they get the gradient.
        teacher_BD: the teacher's pooled tokens or map [B, Dt]; they are detached.

    Returns:
        fp32 scalar.

    **Source**: Miles, Elezi and Deng, "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024;
    its code, `engine.py`.

    **Differs**: in nothing but the precision, which is at least fp32. The code also pools patch tokens only.
    """
    target_BD = at_least_fp32(teacher_BD.detach())
    return F.smooth_l1_loss(at_least_fp32(projected_BD), F.layer_norm(target_BD, target_BD.shape[1:]))
