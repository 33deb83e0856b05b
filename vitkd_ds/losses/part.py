"""Interface of a loss term: `Features`, `PairInfo` and the base class `LossPart`.

To add a loss term, write a settings class in `vitkd_ds.config.losses`, a subclass of `LossPart` in a new file here, and
an entry in `TERMS` of `vitkd_ds.config.losses`. docs/losses.md shows how a term can be added from outside the package.
"""

import math
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """Outputs of one forward pass that the losses compare."""

    logits_BK: Tensor
    """Logits of the classifier. For a model without a classifier, the features that a classifier would receive.

    If a loss term trains a distillation-token head, the logits during training come only from the class-token head.
    """
    pooled_BD: Tensor | None = None
    """Class token after the final norm. For a model without a class token, the mean of final_BPD."""
    final_BPD: Tensor | None = None
    """Patch tokens after the last block and final norm; in a convolutional model, positions of the last feature map."""
    blocks: dict[int, Tensor] | None = None
    """Patch tokens [B, P, D] of the residual stream after each block that a loss term reads, by block number.

    They are not normalised.
    """
    distillation_BK: Tensor | None = None
    """Logits of the distillation-token head."""
    maps: dict[int, Tensor] | None = None
    """Attention from patches (rows) to patches (columns) in each block that a loss term reads, by block number.

    Each tensor [B, P, P] is averaged over heads, in at least fp32. A row sums to less than 1 if its patch also attends
    to prefix tokens.
    """


@dataclass(frozen=True)
class PairInfo:
    """Widths and patch grids (rows, columns) of a student and its teacher.

    The fields have the names of `ViTKDLoss`'s arguments, so that they can be passed to it.
    """

    student_dim: int
    teacher_dim: int
    student_grid: tuple[int, int]
    teacher_grid: tuple[int, int]


def grid_of(num_patches: int, whole: tuple[int, int]) -> tuple[int, int]:
    """Return the grid (rows, columns) of the patches of an image, from the grid of an image of full size.

    With data.image_sizes, the images of some epochs are smaller, by the same factor in height and width.

    Raises:
        ValueError: no such grid has this number of patches.
    """
    rows, columns = whole
    own_rows = math.isqrt(num_patches * rows // columns)
    grid = (own_rows, own_rows * columns // rows)
    if grid[0] * grid[1] != num_patches:
        raise ValueError(f"{num_patches} patches do not form a grid in the proportions of {rows} x {columns}.")
    return grid


def alone(values: Tensor) -> Tensor:
    """Return the values unchanged. This is the default `gather` of `LossPart`, for a single rank."""
    return values


class LossPart(nn.Module):
    """Base class of the modules of loss terms.

    The module's parameters are trained with the student and left out of the exported student.

    `forward(student, teacher, targets_BK)` returns a dict of fp32 scalars. Its keys are the names in the log. The
    value of the term is the sum of these scalars. `student` and `teacher` are `Features`; only the student's features
    receive gradients. `teacher` is None if the term needs no teacher. `targets_BK` are soft labels in fp32, with the
    shape [B, 0] in a run without labels.

    Args:
        term: settings of the term, an instance of its dataclass in `vitkd_ds.config.losses`.
        pair: widths and patch grids of student and teacher; None if no term compares tokens of this teacher.
        gather: collective that concatenates the tensors [B, ...] of all ranks along the first axis. Every rank must
            call it, and every rank gets the same result. In backward, each element gets the gradient of the loss
            averaged over ranks.
    """

    def __init__(self, term: Any, pair: PairInfo | None, gather: Callable[[Tensor], Tensor] = alone) -> None:
        super().__init__()
        self.term, self.pair, self.gather = term, pair, gather

    def metrics(self, student: Features, teacher: Features) -> dict[str, Tensor]:
        """Return further evaluation metrics of a micro-batch: name to one value per image, fp32 [B].

        This is called only if the term's settings have `is_watched`. The log shows the mean over all images.
        """
        return {}


def check_same_grid(pair: PairInfo, term: str) -> None:
    """Raise ValueError, naming the term, unless student and teacher have the same patch grid."""
    if pair.student_grid != pair.teacher_grid:
        raise ValueError(
            f"losses.{term} needs the same patch grid in student and teacher, got {pair.student_grid} and "
            f"{pair.teacher_grid}. Use models with equal patch grids, or set --losses.{term}.weight=0."
        )
