"""What all loss terms share: a weight and its course, and what they compare of student and teacher."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from vitkd_ds.config.part import Number, Part


@dataclass(frozen=True)
class Needs:
    """What a loss compares of student and teacher, besides the student's logits."""

    logits: bool = False
    """Logits of both, so the teacher must know the classes of the data."""
    tokens: bool = False
    """Pooled features or final tokens of both, or a block of either."""
    student_blocks: tuple[int, ...] = ()
    """Blocks whose patch tokens it compares, counted from 0."""
    teacher_blocks: tuple[int, ...] = ()
    distillation_token: bool = False
    """Logits of the student's second head, which a distilled student has on its distillation token."""
    labels: bool = False
    """Labels of the images, besides all of the above."""

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.logits or other.logits, self.tokens or other.tokens,
            tuple(sorted({*self.student_blocks, *other.student_blocks})),
            tuple(sorted({*self.teacher_blocks, *other.teacher_blocks})),
            self.distillation_token or other.distillation_token, self.labels or other.labels,
        )  # fmt: skip

    @property
    def teacher(self) -> bool:
        """Whether it compares anything of a teacher."""
        return replace(self, labels=False) != Needs()

    @property
    def classes(self) -> bool:
        """Whether it compares labels, or logits of a classifier, so that the data must have classes."""
        return self.labels or self.logits or self.distillation_token

    def tapped(self, role: str) -> tuple[int, ...] | None:
        """The blocks of student or teacher that `tap_features` must tap; None where logits suffice."""
        has_tokens = self.tokens or self.student_blocks or self.teacher_blocks
        return getattr(self, f"{role}_blocks") if has_tokens else None


@dataclass(frozen=True)
class Term(Part, place="losses"):
    """Fields shared by all loss terms."""

    module = ""
    """Its `vitkd_ds.losses.part.LossPart`, as module:class; no field."""
    needs = Needs()
    """What it compares; a property where settings decide; no field."""

    weight: Annotated[Number, Ge(0)] = 0.0
    """Factor of the term in the total; 0 is off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the weight: constant, or linear / cosine from the weight down to 0 at the last step."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if it cannot be computed in this run, a `Run`."""
