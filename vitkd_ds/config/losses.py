"""Which loss terms make the total of a run, each with its weight, its schedule and its own numbers. Whoever adds a loss
adds a term here, and nothing in `vitkd_ds.config.run`."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from vitkd_ds.config.rules import POSITIVE, Part, Rule, at_least, within

TEACHER_TERMS = ("kd", "nkd", "vitkd")
"""Loss terms that need a teacher."""
LOGIT_TERMS = ("kd", "nkd")
"""Those of them that compare logits: their teacher must know the classes of the data."""

TWO_BLOCKS = Rule("name two blocks, as the loss has two aligners", lambda blocks: len(blocks) == 2)


@dataclass(frozen=True)
class Term(Part, place="losses"):
    """Fields shared by all loss terms."""

    weight: Annotated[float, at_least(0, "off")] = 0.0
    """Factor of the term in the total; 0 is off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the weight: constant, or linear / cosine from the weight down to 0 at the last step."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term, place="losses.ce"):
    """Cross-entropy with the labels, mixed and smoothed."""

    weight: Annotated[float, at_least(0, "off")] = 1.0
    label_smoothing: Annotated[float, within("[0, 1)")] = 0.0
    """Part of the target that is spread evenly over all classes; 0 is none."""


@dataclass(frozen=True)
class KDTerm(Term, place="losses.kd"):
    """Hinton's distillation, `vitkd_ds.kd_loss`."""

    temperature: Annotated[float, POSITIVE] = 1.0
    """Divisor of both models' logits before the softmax; higher is softer."""


@dataclass(frozen=True)
class NKDTerm(Term, place="losses.nkd"):
    """Normalised distillation, `vitkd_ds.nkd_loss`."""

    temperature: Annotated[float, POSITIVE] = 1.0
    """Divisor of both models' logits in the part on non-target classes; higher is softer."""
    gamma: Annotated[float, at_least(0)] = 1.0
    """Factor of the part on non-target classes; the paper's is 1."""


@dataclass(frozen=True)
class ViTKDTerm(Term, place="losses.vitkd"):
    """Feature distillation, `vitkd_ds.ViTKDLoss`; alpha and beta weigh its two halves inside the term."""

    alpha: Annotated[float, at_least(0)] = 3e-5
    """Factor of the mimicked shallow blocks, whose squared differences are summed over tokens and channels."""
    beta: Annotated[float, at_least(0)] = 3e-6
    """Factor of the regenerated last block, summed likewise."""
    scaled: bool = False
    """Multiply alpha and beta by 196 x 384 / (student's tokens x teacher's width), so that the paper's values, which
    weigh sums over 196 tokens of width 384, suit a pair of any size. Without it they weigh plain sums, as in the
    paper, whose wider teachers weigh more."""
    mask_ratio: Annotated[float, within("(0, 1)")] = 0.5
    """Part of the student's tokens of the last block that is masked before it is regenerated."""
    blocks: Annotated[tuple[int, ...], TWO_BLOCKS] = (0, 1)
    """Blocks whose output is mimicked, counted from 0 in student and teacher alike; the paper's are the first two."""


@dataclass(frozen=True)
class LossesConfig:
    """Which terms make the total: any set of the four, each with a weight (0 is off) and a schedule."""

    ce: CrossEntropyTerm = CrossEntropyTerm()
    kd: KDTerm = KDTerm()
    nkd: NKDTerm = NKDTerm()
    vitkd: ViTKDTerm = ViTKDTerm()

    def active(self) -> dict[str, Any]:
        """The terms whose weight is not 0, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name).weight}

    @property
    def tapped_blocks(self) -> tuple[int, ...]:
        """Blocks whose output both models hand over, counted from 0; none where no term compares tokens."""
        return self.vitkd.blocks if "vitkd" in self.active() else ()

    @property
    def needs_logits(self) -> bool:
        """Whether a term compares the logits of student and teacher."""
        return any(name in LOGIT_TERMS for name in self.active())
