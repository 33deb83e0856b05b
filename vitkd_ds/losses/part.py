"""What a loss term is made of: the features that it may compare, what it is built for, and the module itself.

To add a term: its settings in `vitkd_ds.config.losses`, its module, a `LossPart`, in a file of its own here, and a line
in `TERMS` there. docs/losses.md shows one from outside the package.
"""

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """Outputs of one forward pass of a model that the losses compare."""

    logits_BK: Tensor
    """In training those of the class token's head alone, where a student has another on a distillation token that a
    term trains. Of a model without a classifier what its head would look at."""
    pooled_BD: Tensor | None = None
    """The class token after the final norm, of a model without one the mean of its tokens."""
    final_BPD: Tensor | None = None
    """Patch tokens after the last block and the final norm; of a convolutional model the positions of its last map."""
    blocks: dict[int, Tensor] | None = None
    """Patch tokens [B, P, D] of the residual stream after each tapped block, without a norm, by the block's number."""
    distillation_BK: Tensor | None = None
    """Logits of the head on the distillation token."""
    maps: dict[int, Tensor] | None = None
    """Attention of patches to patches [B, P, P] in each tapped block, mean over heads, at least fp32, by the block's
    number. Rows sum to less than 1 where prefix tokens have the rest."""


@dataclass(frozen=True)
class PairInfo:
    """Widths and patch grids (rows, columns) of a student and its teacher, named as the arguments of ViTKDLoss."""

    student_dim: int
    teacher_dim: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]


def alone(values: Tensor) -> Tensor:
    """The values of all ranks, where there is one: a `gather` for `LossPart`."""
    return values


class LossPart(nn.Module):
    """The module of a term. It trains with the student, and is dropped when the student is exported.

    Its `forward(student, teacher, targets_BK)` computes the parts of the term, whose sum is the term: a dict of fp32
    scalars by the names that the log shows. `student` and `teacher` are `Features`, of which the student's get the
    gradient and the teacher's have none (None if the term needs no teacher); `targets_BK` are soft labels, fp32,
    [B, 0] in a run without labels.

    Args:
        term: the settings, a dataclass of `vitkd_ds.config.losses`.
        pair: widths and grids of student and teacher; None where no term compares tokens of this teacher.
        gather: joins a tensor [B, ...] of each rank along its first axis, the same on all ranks, each of which must
            call it; the gradient that an element gets is that of the mean over the ranks.
    """

    def __init__(self, term: Any, pair: PairInfo | None, gather: Callable[[Tensor], Tensor] = alone) -> None:
        super().__init__()
        self.term, self.pair, self.gather = term, pair, gather

    def metrics(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Return evaluation metrics of a micro-batch by name, fp32 [B]: those of a term that `is_watched`. Their mean
        over all images is logged."""
        return {}


def check_same_grid(pair: PairInfo, term: str) -> None:
    """Raise ValueError, which names the term, unless student and teacher have the same patch grid."""
    if pair.student_grid != pair.teacher_grid:
        raise ValueError(
            f"losses.{term} needs the same patch grid in student and teacher, found {pair.student_grid} and "
            f"{pair.teacher_grid}: use models of one patch size, or set --losses.{term}.weight=0"
        )
