"""Interface of a loss term: `Features`, `PairInfo` and the base class `LossPart`.

To add a term, write its settings class in `vitkd_ds.config.losses`, its `LossPart` in a new file here, and a line in
`TERMS` of `vitkd_ds.config.losses`. docs/losses.md shows a term from outside the package.
"""

from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """Outputs of one forward pass that the losses compare."""

    logits_BK: Tensor
    """Classifier logits. In training, the class-token head's only, if a term trains a distillation-token head. For a
    model without a classifier, the input that its head would get."""
    pooled_BD: Tensor | None = None
    """Class token after the final norm, or the mean token of a model without a class token."""
    final_BPD: Tensor | None = None
    """Patch tokens after the last block and the final norm, or the positions of a convolutional model's last map."""
    blocks: dict[int, Tensor] | None = None
    """Patch tokens [B, P, D] of the residual stream after each tapped block, not normalised, keyed by block number."""
    distillation_BK: Tensor | None = None
    """Logits of the distillation-token head."""
    maps: dict[int, Tensor] | None = None
    """Patch-to-patch attention [B, P, P] in each tapped block, mean over heads, at least fp32, keyed by block number.
    A row sums to less than 1 if the patch also attends to prefix tokens."""


@dataclass(frozen=True)
class PairInfo:
    """Widths and patch grids (rows, columns) of a student and its teacher. Field names are ViTKDLoss arguments."""

    student_dim: int
    teacher_dim: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]


def alone(values: Tensor) -> Tensor:
    """Return the values unchanged: the `gather` of `LossPart` for a single rank."""
    return values


class LossPart(nn.Module):
    """Module of a loss term. It trains with the student and is dropped when the student is exported.

    `forward(student, teacher, targets_BK)` returns a dict of fp32 scalars, keyed by the names that the log shows. The
    term is their sum. `student` and `teacher` are `Features`; only the student's receive gradients. `teacher` is None
    if the term needs no teacher. `targets_BK` are fp32 soft labels, [B, 0] in a run without labels.

    Args:
        term: settings, a dataclass of `vitkd_ds.config.losses`.
        pair: widths and grids of student and teacher; None if no term compares tokens of this teacher.
        gather: collective that concatenates each rank's tensor [B, ...] along the first axis; every rank must call it
            and gets the same result. In backward, an element gets the gradient of the mean loss over ranks.
    """

    def __init__(self, term: Any, pair: PairInfo | None, gather: Callable[[Tensor], Tensor] = alone) -> None:
        super().__init__()
        self.term, self.pair, self.gather = term, pair, gather

    def metrics(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Return evaluation metrics of a micro-batch by name, fp32 [B], if the term `is_watched`. The mean over all
        images is logged."""
        return {}


def check_same_grid(pair: PairInfo, term: str) -> None:
    """Raise ValueError, naming the term, unless student and teacher have the same patch grid."""
    if pair.student_grid != pair.teacher_grid:
        raise ValueError(
            f"losses.{term} needs the same patch grid in student and teacher, got {pair.student_grid} and "
            f"{pair.teacher_grid}. Use models with equal patch grids, or set --losses.{term}.weight=0."
        )
