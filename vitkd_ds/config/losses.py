"""Settings of every loss term: weight, schedule and its own parameters. Imports no torch.

A new loss is declared here, or in another package through an entry point; `vitkd_ds.config.run` stays unchanged. A term
names its module and declares its inputs as a function of its settings.
"""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from pydantic.dataclasses import dataclass

from vitkd_ds.config import entry_points
from vitkd_ds.config.part import Number, Part, Rule, require
from vitkd_ds.config.term import MeasuredCost, Needs, PairedBlocksTerm, Term

TWO_BLOCKS = Rule(lambda blocks: len(blocks) == 2, "two blocks with a comma, as the loss has two aligners")

FACTOR = "balance_"
"""Prefix of a term's learned factor in the log."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term, place="losses.ce"):
    """Cross-entropy with the labels, mixed and smoothed."""

    module = "vitkd_ds.losses.cross_entropy:CrossEntropy"
    needs = Needs(labels=True)

    weight: Annotated[Number, Ge(0)] = 1.0
    label_smoothing: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Fraction of each target that is spread evenly over all classes; 0 is off."""


@dataclass(frozen=True)
class KDTerm(Term, place="losses.kd"):
    """Hinton's distillation, `vitkd_ds.kd_loss`."""

    module = "vitkd_ds.losses.kd:KD"
    needs = Needs(logits=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits before the softmax; higher is softer."""
    standardize: bool = False
    """Standardise each image's logits to mean 0 and standard deviation 1 first."""


@dataclass(frozen=True)
class NKDTerm(Term, place="losses.nkd"):
    """Normalised distillation, `vitkd_ds.nkd_loss`."""

    module = "vitkd_ds.losses.nkd:NKD"
    needs = Needs(logits=True, labels=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits in the non-target part; higher is softer."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Weight of the non-target part; 1 in the paper."""


@dataclass(frozen=True)
class ViTKDTerm(Term, place="losses.vitkd"):
    """Feature distillation, `vitkd_ds.ViTKDLoss`; alpha and beta weigh its two halves inside the term."""

    module = "vitkd_ds.losses.vitkd:ViTKD"
    # 6 bytes for the teacher's three features. 16 bytes (measured) for backward: the masked tokens and the first
    # convolution's output in bf16, and three differences in fp32.
    cost = MeasuredCost("ViTKD", bytes_per_patch=22)
    lowered_by = {"vitkd_mimic": "alpha", "vitkd_generate": "beta"}

    alpha: Annotated[Number, Ge(0)] = 3e-5
    """Weight of the mimicked shallow blocks: squared differences summed over tokens and channels."""
    beta: Annotated[Number, Ge(0)] = 3e-6
    """Weight of the regenerated last block, a sum of the same kind."""
    scaled: bool = False
    """Multiply alpha and beta by 196 x 384 / (student tokens x teacher width). The paper's values suit sums over 196
    tokens of width 384; with scaled, they suit a pair of any size. false uses plain sums, as in the paper, which weigh
    a wider teacher more."""
    mask_ratio: Annotated[Number, Interval(gt=0, lt=1)] = 0.5
    """Fraction of the student's last-block tokens that are masked and then regenerated."""
    blocks: Annotated[tuple[int, ...], TWO_BLOCKS] = (0, 1)
    """Two mimicked blocks, counted from 0, the same in student and teacher; the first two in the paper."""

    @property
    def needs(self) -> Needs:
        """Final tokens and the mimicked blocks of both models."""
        return Needs(tokens=True, student_blocks=self.blocks, teacher_blocks=self.blocks)


@dataclass(frozen=True)
class WTTMTerm(Term, place="losses.wttm"):
    """Transformed teacher matching, `vitkd_ds.losses.wttm_loss`."""

    module = "vitkd_ds.losses.wttm:WTTM"
    needs = Needs(logits=True)

    gamma: Annotated[Number, Gt(0)] = 0.8
    """Exponent of the teacher's probabilities, 1 / temperature. The paper does not state its value for DeiT."""
    weighted: bool = True
    """Weight each image by the teacher's uncertainty (with gamma above 1, by its certainty); false is plain TTM."""


@dataclass(frozen=True)
class DISTTerm(Term, place="losses.dist"):
    """Correlations of probabilities, `vitkd_ds.losses.dist_loss`."""

    module = "vitkd_ds.losses.dist:DIST"
    needs = Needs(logits=True)

    beta: Annotated[Number, Ge(0)] = 1.0
    """Weight of the correlations over the classes of an image."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Weight of the correlations over the images of a class."""
    scope: Literal["micro_batch", "all_ranks"] = "micro_batch"
    """Images correlated for a class: micro_batch (this rank's) or all_ranks (gathered from every rank). Accumulated
    micro-batches are never combined."""


@dataclass(frozen=True)
class DKDTerm(Term, place="losses.dkd"):
    """Decoupled distillation, `vitkd_ds.losses.dkd_loss`; labels must not be mixed."""

    module = "vitkd_ds.losses.dkd:DKD"
    needs = Needs(logits=True, labels=True)

    alpha: Annotated[Number, Ge(0)] = 1.0
    """Weight of the target-class part: the label against all other classes."""
    beta: Annotated[Number, Ge(0)] = 0.5
    """Weight of the non-target part: the distribution over the other classes."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of all logits; higher is softer."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if labels are mixed."""
        if mixing := next((key for key in ("mixup_alpha", "cutmix_alpha") if getattr(run.augment, key)), None):
            raise ValueError(
                f"losses.dkd needs one label per image, but augment.{mixing}={getattr(run.augment, mixing):g} mixes "
                f"labels. Set --augment.{mixing}=0, or use losses.nkd, which is defined for mixed labels."
            )


@dataclass(frozen=True)
class DistillationTokenTerm(Term, place="losses.distillation_token"):
    """DeiT's distillation token: the student's second head learns from the teacher, the first from the other terms."""

    module = "vitkd_ds.losses.distillation_token:DistillationToken"
    needs = Needs(logits=True, second_head=True)

    kind: Literal["hard", "soft"] = "hard"
    """Target of the second head: hard (the teacher's most likely class) or soft (the teacher's probabilities)."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits for kind=soft; higher is softer."""


@dataclass(frozen=True)
class VkDTerm(Term, place="losses.vkd"):
    """Pooled tokens through an orthogonal projector, `vitkd_ds.losses.vkd_loss`; works with any timm teacher."""

    module = "vitkd_ds.losses.vkd:VkD"
    needs = Needs(tokens=True)


@dataclass(frozen=True)
class SpectralTerm(PairedBlocksTerm, place="losses.spectral"):
    """Spectra of token maps, `vitkd_ds.losses.spectral_loss`; both models need the same patch grid."""

    module = "vitkd_ds.losses.spectral:Spectral"

    @property
    def needs(self) -> Needs:
        """Chosen blocks of both models."""
        return Needs(tokens=True, student_blocks=self.student_blocks, teacher_blocks=self.teacher_blocks)


@dataclass(frozen=True)
class FeatureTerm(Term, place="losses.feature"):
    """Class and patch tokens through adapters, `vitkd_ds.losses.feature`; any timm teacher, no labels needed."""

    module = "vitkd_ds.losses.feature:Feature"
    needs = Needs(tokens=True)
    is_watched = True

    target: Literal["raw", "layer_norm", "standardize", "phi_s"] = "standardize"
    """Transform of the teacher's features. raw: none. layer_norm: LayerNorm. standardize: every channel to mean 0 and
    variance 1, by calibrated statistics. phi_s: a rotation and one scale, by calibrated statistics, so that all
    channels have equal variance."""
    calibration_batches: Annotated[int, Gt(0)] = 32
    """Micro-batches per rank used to compute the statistics before the first update; checkpoints store the result."""


@dataclass(frozen=True)
class RelationTerm(Term, place="losses.relation"):
    """Cosine similarities among tokens and with recent images, `vitkd_ds.losses.relation`; one patch grid for both."""

    module = "vitkd_ds.losses.relation:Relation"
    needs = Needs(tokens=True)

    temperature: Annotated[Number, Gt(0)] = 0.07
    """Divisor of the cosines before the softmax."""
    queue: Annotated[int, Gt(0)] = 4096
    """Number of most recent images of all ranks that each image is compared with, itself included; at least
    global_batch_size."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if the queue is smaller than the global batch."""
        least = f"be at least global_batch_size={run.global_batch_size}, so that it holds the images of all ranks"
        require(self.queue >= run.global_batch_size, "losses.relation.queue", self.queue, least)


@dataclass(frozen=True)
class AttentionTerm(PairedBlocksTerm, place="losses.attention"):
    """Attention maps of chosen blocks, `vitkd_ds.losses.attention`; both models need the same patch grid."""

    module = "vitkd_ds.losses.attention:Attention"

    student_blocks: tuple[int, ...] = (-1,)
    """Blocks of the student, counted from 0; negative numbers count from the end (-1 is the last)."""
    teacher_blocks: tuple[int, ...] = (-1,)
    """Blocks of the teacher, paired with student_blocks in order; negative numbers count from the end."""

    @property
    def needs(self) -> Needs:
        """Attention maps of chosen blocks of both models."""
        return Needs(tokens=True, student_attention=self.student_blocks, teacher_attention=self.teacher_blocks)


@dataclass(frozen=True)
class Losses(Part, place="losses"):
    """Loss terms that make the total, each with a weight (0 is off) and a schedule."""

    balance: bool = field(default=False, kw_only=True)
    """Learn one more factor per term from the magnitudes of the terms, with a mean of 1 (DTO-KD without gradients per
    term)."""

    @property
    def label_smoothing(self) -> float:
        """Fraction of each target that is spread evenly over all classes."""
        return self.ce.label_smoothing

    def without_label_smoothing(self) -> "Losses":
        """Return a copy without label smoothing."""
        return replace(self, ce=replace(self.ce, label_smoothing=0.0))

    def terms(self) -> dict[str, Any]:
        """Return all terms by name."""
        return {name: getattr(self, name) for name in TERMS}

    def active(self) -> dict[str, Any]:
        """Return the terms with a weight above 0, by name."""
        return {name: term for name, term in self.terms().items() if term.weight}

    @property
    def needs(self) -> Needs:
        """Union of the active terms' needs."""
        needs = Needs()
        for term in self.active().values():
            needs |= term.needs
        return needs


NAMES_TAKEN = ("student", "balance", "blocks", "forward", "maps", "parts", "training", *dir(Losses))
"""Reserved names: attributes of `Distiller` and `Losses`."""
TERMS: dict[str, type[Term]] = {
    "ce": CrossEntropyTerm,
    "kd": KDTerm,
    "nkd": NKDTerm,
    "vitkd": ViTKDTerm,
    "wttm": WTTMTerm,
    "dist": DISTTerm,
    "dkd": DKDTerm,
    "distillation_token": DistillationTokenTerm,
    "vkd": VkDTerm,
    "spectral": SpectralTerm,
    "feature": FeatureTerm,
    "relation": RelationTerm,
    "attention": AttentionTerm,
}
"""Every term by name, in the order of the log."""
_OTHERS, BAD_ENTRY_POINTS = entry_points.find_terms({*TERMS, *NAMES_TAKEN})
"""Terms of other installed packages, and error messages for invalid ones, which `check_run` raises."""
TERMS |= _OTHERS

_FIELDS = {"__annotations__": TERMS, "__module__": __name__, "__doc__": Losses.__doc__}
LossesConfig = dataclass(frozen=True)(
    type(Losses)("LossesConfig", (Losses,), _FIELDS | {name: term() for name, term in TERMS.items()})
)
"""`Losses` with one field for each of TERMS."""
