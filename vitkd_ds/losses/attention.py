"""Attention distillation without parameters: match patch-to-patch attention in some blocks."""

from typing import Any

import torch
from torch import Tensor

from vitkd_ds.losses.part import Features, LossPart, PairInfo, check_same_grid
from vitkd_ds.losses.precision import at_least_fp32

LEAST = 1e-12
"""Lower bound of an attention probability before the logarithm."""


class Attention(LossPart):
    """Loss term `attention`."""

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        check_same_grid(pair, "attention")

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `attention_loss`."""
        blocks = zip(self.term.student_blocks, self.term.teacher_blocks, strict=True)
        losses = [attention_loss(student.maps[own], teacher.maps[other]) for own, other in blocks]
        return {"attention": torch.stack(losses).mean()}


def attention_loss(student_BPP: Tensor, teacher_BPP: Tensor) -> Tensor:
    """Compute KL(a_T || a_S), averaged over patches and images.

    For each patch, a_T and a_S are the teacher's and the student's attention from that patch to all patches.

    Args:
        student_BPP: student's attention from patches (rows) to patches (columns), averaged over heads; it receives
            gradients. Each row is renormalised to sum to 1, because attention to prefix tokens is not included.
        teacher_BPP: teacher's attention in the same form; it is detached.

    Returns:
        fp32 scalar.

    **Source**: MiniLM (arXiv 2002.10957), equation 2, the attention part of its loss.

    **Differs**: the attention is averaged over heads, so that both models may have different numbers of heads, while
    the source compares single heads. Only attention between patches is compared, with renormalised rows. The caller
    chooses the blocks, while the source uses only the last block. The source's loss on attention values is left out.
    Probabilities are clamped to at least 1e-12. The computation is in at least fp32.
    """
    rows = []
    for map_BPP in (student_BPP, teacher_BPP.detach()):
        map_BPP = at_least_fp32(map_BPP).clamp_min(LEAST)
        rows.append(map_BPP / map_BPP.sum(dim=2, keepdim=True))
    own_BPP, other_BPP = rows
    return (other_BPP * (other_BPP.log() - own_BPP.log())).sum(dim=2).mean()
