"""Which loss terms make the total of a run, each with its weight, its schedule and its own numbers.

Apart from `vitkd_ds.config.run` because whoever adds a loss adds a term here and nothing else there.
"""

from dataclasses import dataclass, fields
from typing import Any

SCHEDULES = ("constant", "linear", "cosine")

TEACHER_TERMS = ("kd", "nkd", "vitkd")
"""Loss terms that need a teacher."""


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError unless `holds`; the message names the key, what was found and what must hold."""
    if not holds:
        raise ValueError(f"{key} must {must}, found {found!r}: change it in the recipe or with --{key}")


def require_choice(value: str, key: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    require(value in choices, key, value, f"be one of {', '.join(choices)}")


def _check_term(term: Any, key: str) -> None:
    require(term.weight >= 0, f"losses.{key}.weight", term.weight, "be 0 (off) or more")
    require_choice(term.schedule, f"losses.{key}.schedule", SCHEDULES)


@dataclass(frozen=True)
class CrossEntropyTerm:
    """Cross-entropy with the labels, mixed and smoothed."""

    weight: float = 1.0
    """0 is off."""
    schedule: str = "constant"
    """constant, or linear / cosine from the weight down to 0 at the last step."""
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_term(self, "ce")
        require(0 <= self.label_smoothing < 1, "losses.ce.label_smoothing", self.label_smoothing, "be in [0, 1)")


@dataclass(frozen=True)
class KDTerm:
    """Hinton's distillation, `vitkd_ds.kd_loss`."""

    weight: float = 0.0
    schedule: str = "constant"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_term(self, "kd")
        require(self.temperature > 0, "losses.kd.temperature", self.temperature, "be positive")


@dataclass(frozen=True)
class NKDTerm:
    """Normalised distillation, `vitkd_ds.nkd_loss`."""

    weight: float = 0.0
    schedule: str = "constant"
    temperature: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        _check_term(self, "nkd")
        require(self.temperature > 0, "losses.nkd.temperature", self.temperature, "be positive")
        require(self.gamma >= 0, "losses.nkd.gamma", self.gamma, "be 0 or more")


@dataclass(frozen=True)
class ViTKDTerm:
    """Feature distillation, `vitkd_ds.ViTKDLoss`; alpha and beta weigh its two halves inside the term."""

    weight: float = 0.0
    schedule: str = "constant"
    alpha: float = 3e-5
    beta: float = 3e-6
    mask_ratio: float = 0.5
    blocks: tuple[int, ...] = (0, 1)
    """Blocks whose output is mimicked, counted from 0 in student and teacher alike; the paper's are the first two."""

    def __post_init__(self) -> None:
        _check_term(self, "vitkd")
        require(0 < self.mask_ratio < 1, "losses.vitkd.mask_ratio", self.mask_ratio, "be in (0, 1)")
        require(
            len(self.blocks) == 2, "losses.vitkd.blocks", self.blocks, "name two blocks, as the loss has two aligners"
        )


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
        """Blocks whose output both models hand over, ascending from 0; one at least, as a model must be tapped at all."""
        return self.vitkd.blocks if "vitkd" in self.active() else (0,)
