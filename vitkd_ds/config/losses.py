"""Which loss terms make the total of a run, each with its weight, its schedule and its own numbers.

Apart from `vitkd_ds.config.run` because whoever adds a loss adds a term here and nothing else there.
"""

from dataclasses import dataclass, fields
from typing import Any, Callable, Literal, get_args, get_origin, get_type_hints

TEACHER_TERMS = ("kd", "nkd", "vitkd")
"""Loss terms that need a teacher."""


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError unless `holds`; the message names the key, what was found and what must hold."""
    if not holds:
        raise ValueError(f"{key} must {must}, found {found!r}: change it in the recipe or with --{key}")


def checker(part: Any, name: str) -> Callable[[str, bool, str], None]:
    """Check the fields of a part that are declared as a Literal; returns `require` for the other fields of the part.

    Args:
        part: a dataclass of the run.
        name: its place in the run, such as optim; "" is the run itself.

    Returns:
        A function of a field's name, whether its value is right, and what it must be or do.
    """

    def check(field: str, holds: bool, must: str) -> None:
        require(holds, f"{name}.{field}".lstrip("."), getattr(part, field), must)

    for field, declared in get_type_hints(type(part)).items():
        if get_origin(declared) is Literal:
            check(field, getattr(part, field) in get_args(declared), f"be one of {', '.join(get_args(declared))}")
    return check


@dataclass(frozen=True)
class Term:
    """What every loss term has."""

    weight: float = 0.0
    """Factor of the term in the total; 0 is off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the weight changes: constant, or linear / cosine from the weight down to 0 at the last step."""

    def _checker(self, name: str) -> Callable[[str, bool, str], None]:
        check = checker(self, f"losses.{name}")
        check("weight", self.weight >= 0, "be 0 (off) or more")
        return check


@dataclass(frozen=True)
class CrossEntropyTerm(Term):
    """Cross-entropy with the labels, mixed and smoothed."""

    weight: float = 1.0
    label_smoothing: float = 0.0
    """Part of the target that is spread evenly over all classes; 0 is none."""

    def __post_init__(self) -> None:
        self._checker("ce")("label_smoothing", 0 <= self.label_smoothing < 1, "be in [0, 1)")


@dataclass(frozen=True)
class KDTerm(Term):
    """Hinton's distillation, `vitkd_ds.kd_loss`."""

    temperature: float = 1.0
    """Divisor of both models' logits before the softmax; higher is softer."""

    def __post_init__(self) -> None:
        self._checker("kd")("temperature", self.temperature > 0, "be positive")


@dataclass(frozen=True)
class NKDTerm(Term):
    """Normalised distillation, `vitkd_ds.nkd_loss`."""

    temperature: float = 1.0
    """Divisor of both models' logits in the part on non-target classes; higher is softer."""
    gamma: float = 1.0
    """Factor of the part on non-target classes; the paper's is 1."""

    def __post_init__(self) -> None:
        check = self._checker("nkd")
        check("temperature", self.temperature > 0, "be positive")
        check("gamma", self.gamma >= 0, "be 0 or more")


@dataclass(frozen=True)
class ViTKDTerm(Term):
    """Feature distillation, `vitkd_ds.ViTKDLoss`; alpha and beta weigh its two halves inside the term."""

    alpha: float = 3e-5
    """Factor of the mimicked shallow blocks, whose squared differences are summed over tokens and channels."""
    beta: float = 3e-6
    """Factor of the regenerated last block, summed likewise."""
    mask_ratio: float = 0.5
    """Part of the student's tokens of the last block that is masked before it is regenerated."""
    blocks: tuple[int, ...] = (0, 1)
    """Blocks whose output is mimicked, counted from 0 in student and teacher alike; the paper's are the first two."""

    def __post_init__(self) -> None:
        check = self._checker("vitkd")
        check("mask_ratio", 0 < self.mask_ratio < 1, "be in (0, 1)")
        check("blocks", len(self.blocks) == 2, "name two blocks, as the loss has two aligners")


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
        """Blocks whose output both models hand over, counted from 0; at least one, as a model must be tapped at all."""
        return self.vitkd.blocks if "vitkd" in self.active() else (0,)
