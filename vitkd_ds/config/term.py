"""Declarations shared by all loss terms: weight and schedule, inputs, cost, watched metrics."""

from dataclasses import fields, replace
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from vitkd_ds.config.part import Number, Part, require
from vitkd_ds.config.teachers import USUAL


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
    student_attention: tuple[int, ...] = ()
    """Blocks whose attention maps it compares, counted from 0, or from the last: -1."""
    teacher_attention: tuple[int, ...] = ()
    second_head: bool = False
    """Logits of the student's second head, which a distilled student has on its distillation token."""
    labels: bool = False
    """Labels of the images, besides all of the above."""

    def __or__(self, other: "Needs") -> "Needs":
        joined = {}
        for field in fields(self):
            own = getattr(self, field.name)
            others = getattr(other, field.name)
            is_blocks = isinstance(own, tuple)
            joined[field.name] = tuple(sorted({*own, *others})) if is_blocks else own or others
        return Needs(**joined)

    @property
    def teacher(self) -> bool:
        """Whether it compares anything of a teacher."""
        return replace(self, labels=False) != Needs()

    def blocks(self, *roles: str) -> bool:
        """Return whether it compares chosen blocks of student or teacher, or of one of them."""
        chosen = {
            "student": self.student_blocks + self.student_attention,
            "teacher": self.teacher_blocks + self.teacher_attention,
        }
        return any(chosen[role] for role in roles or chosen)

    @property
    def classes(self) -> bool:
        """Whether it compares labels, or logits of a classifier, so that the data must have classes."""
        return self.labels or self.logits or self.second_head

    def tapped(self, role: str) -> tuple[int, ...] | None:
        """The blocks of student or teacher that `tap_features` must tap; None where logits suffice."""
        return getattr(self, f"{role}_blocks") if self.tokens or self.blocks() else None


class MeasuredCost(NamedTuple):
    """Cost of a term whose speed was measured on a GPU; `plan` counts the operations of all others."""

    title: str
    """Name of the term in the tables of `plan`."""
    bytes_per_patch: int
    """Bytes kept for backward per patch and unit of the teacher's width."""


@dataclass(frozen=True)
class Term(Part, place="losses"):
    """Fields shared by all loss terms. Attributes without an annotation are declarations, not fields."""

    module = ""
    """Its `vitkd_ds.losses.part.LossPart`, as module:class; no field."""
    needs = Needs()
    """What it compares; a property where settings decide; no field."""
    cost = None
    """Its cost where that was measured; no field."""
    lowered_by = {}
    """Name of a part of the term in the log -> the field that lowers it, where that is not `weight`; no field."""
    is_watched = False
    """Whether evaluations without labels also compute the `metrics` of its `LossPart`; no field."""

    weight: Annotated[Number, Ge(0)] = 0.0
    """Factor of the term in the total; 0 is off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the weight: constant, or linear / cosine from the weight down to 0 at the last step."""
    teacher: str = USUAL
    """Name of the teacher that it compares, if it compares any; `teacher` is also a run's only one of another name."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if it cannot be computed in this run, a `Run`."""


@dataclass(frozen=True)
class PairedBlocksTerm(Term, place="losses"):
    """Fields of a term that compares blocks of the student with blocks of the teacher, one by one."""

    student_blocks: tuple[int, ...] = (0, 1)
    """Blocks of the student, counted from 0."""
    teacher_blocks: tuple[int, ...] = (0, 1)
    """Blocks of the teacher that they are compared with, one by one."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError unless each block has a partner. Options are set one by one, so only a run can tell."""
        require(
            len(self.student_blocks) == len(self.teacher_blocks) > 0,
            f"{self._place}.teacher_blocks",
            self.teacher_blocks,
            f"name as many blocks as student_blocks={self.student_blocks}, one or more",
        )


def terms_of_a_teacher(losses: Any) -> list[str]:
    """Return the names of the terms that compare something of a teacher, with a weight or without."""
    return [name for name, term in losses.terms().items() if term.needs.teacher]


def terms_of_logits(losses: Any) -> list[str]:
    """Return the names of the terms that compare a teacher's logits only."""
    return [name for name in terms_of_a_teacher(losses) if losses.terms()[name].needs.tapped("teacher") is None]


def terms_of_blocks(losses: Any) -> list[str]:
    """Return the names of the terms that compare blocks of vision transformers."""
    return [name for name, term in losses.terms().items() if term.needs.blocks()]
