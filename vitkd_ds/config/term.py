"""Declarations shared by all loss terms: weight and schedule, inputs, cost, watched metrics."""

from dataclasses import fields, replace
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge
from pydantic.dataclasses import dataclass

from vitkd_ds.config.part import Number, Part, require
from vitkd_ds.config.teachers import USUAL


@dataclass(frozen=True)
class Needs:
    """Inputs that a loss needs besides the student's logits."""

    logits: bool = False
    """Teacher logits; the teacher must have the same classes as the data."""
    tokens: bool = False
    """Pooled features, final tokens or block outputs of the models."""
    student_blocks: tuple[int, ...] = ()
    """Blocks that provide patch tokens, counted from 0."""
    teacher_blocks: tuple[int, ...] = ()
    student_attention: tuple[int, ...] = ()
    """Blocks that provide attention maps, counted from 0; negative numbers count from the end."""
    teacher_attention: tuple[int, ...] = ()
    second_head: bool = False
    """Logits of the student's second head, on the distillation token of a DeiT-distilled model."""
    labels: bool = False
    """Labels of the images."""

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
        """Whether the loss needs a teacher."""
        return replace(self, labels=False) != Needs()

    def blocks(self, *roles: str) -> bool:
        """Return whether the loss needs block outputs or attention maps of the given roles (default: either model)."""
        chosen = {
            "student": self.student_blocks + self.student_attention,
            "teacher": self.teacher_blocks + self.teacher_attention,
        }
        return any(chosen[role] for role in roles or chosen)

    @property
    def classes(self) -> bool:
        """Whether the loss needs data with classes, because it uses labels or a classifier's logits."""
        return self.labels or self.logits or self.second_head

    def tapped(self, role: str) -> tuple[int, ...] | None:
        """Return the argument `blocks` of `tap_features` for a role; None if the loss needs only logits."""
        return getattr(self, f"{role}_blocks") if self.tokens or self.blocks() else None


class MeasuredCost(NamedTuple):
    """Cost of a term that was timed on a GPU. For all other terms, `plan` counts operations."""

    title: str
    """Name of the term in the tables of `plan`."""
    bytes_per_patch: int
    """Bytes kept for backward, per patch and channel of the teacher."""


@dataclass(frozen=True)
class Term(Part, place="losses"):
    """Base of all loss terms. Attributes without an annotation are declarations, not settings."""

    module = ""
    """The term's `vitkd_ds.losses.part.LossPart`, as module:class."""
    needs = Needs()
    """The term's inputs; a property if they depend on its settings."""
    cost = None
    """The term's `MeasuredCost`; None if the cost was not measured."""
    lowered_by = {}
    """Name of a value that the term logs -> setting that scales this value, if that is not `weight`."""
    is_watched = False
    """Whether evaluations without labels also compute the `metrics` of the term's `LossPart`."""

    weight: Annotated[Number, Ge(0)] = 0.0
    """Factor of the term in the total; 0 is off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule of the weight. constant: unchanged. linear, cosine: decay to 0 at the last step."""
    teacher: str = USUAL
    """Name of the teacher to imitate. The default also means the only teacher of a run, whatever its name."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if the term cannot be computed in a `Run`."""


@dataclass(frozen=True)
class PairedBlocksTerm(Term, place="losses"):
    """Base of terms that compare pairs of student and teacher blocks."""

    student_blocks: tuple[int, ...] = (0, 1)
    """Blocks of the student, counted from 0."""
    teacher_blocks: tuple[int, ...] = (0, 1)
    """Blocks of the teacher, paired with student_blocks in order."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError unless the settings name as many blocks of the teacher as of the student, at least one."""
        require(
            len(self.student_blocks) == len(self.teacher_blocks) > 0,
            f"{self._place}.teacher_blocks",
            self.teacher_blocks,
            f"have as many blocks as student_blocks={self.student_blocks}, at least one",
        )


def terms_of_a_teacher(losses: Any) -> list[str]:
    """Return the names of all terms that need a teacher, active or not."""
    return [name for name, term in losses.terms().items() if term.needs.teacher]


def terms_of_logits(losses: Any) -> list[str]:
    """Return the names of all terms that need only a teacher's logits."""
    return [name for name in terms_of_a_teacher(losses) if losses.terms()[name].needs.tapped("teacher") is None]


def terms_of_blocks(losses: Any) -> list[str]:
    """Return the names of all terms that compare blocks of vision transformers."""
    return [name for name, term in losses.terms().items() if term.needs.blocks()]
