"""Settings of every loss term: weight, schedule and its own parameters. Imports no torch.

To add a loss, declare a term here, or in another package with an entry point; `vitkd_ds.config.run` stays unchanged. A
term names the module that computes it, and declares its inputs, which may depend on its settings.
"""

from dataclasses import field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval
from pydantic.dataclasses import dataclass

from vitkd_ds.config import entry_points
from vitkd_ds.config.part import Number, Part, Rule, require
from vitkd_ds.config.term import MeasuredCost, Needs, PairedBlocksTerm, Term

TWO_BLOCKS = Rule(lambda blocks: len(blocks) == 2, "two blocks separated by a comma, because the loss has two aligners")

FACTOR = "balance_"
"""Prefix of a term's learned factor in the log."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term, place="losses.ce"):
    """Cross-entropy with the labels, after mixing and label smoothing."""

    module = "vitkd_ds.losses.cross_entropy:CrossEntropy"
    needs = Needs(labels=True)

    weight: Annotated[Number, Ge(0)] = 1.0
    label_smoothing: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Fraction of each target that is spread evenly over all classes; 0 is off."""


@dataclass(frozen=True)
class KDTerm(Term, place="losses.kd"):
    """Hinton's knowledge distillation, `vitkd_ds.kd_loss`."""

    module = "vitkd_ds.losses.kd:KD"
    needs = Needs(logits=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits before the softmax. A higher value gives softer probabilities."""
    standardize: bool = False
    """First standardise the logits of each image to mean 0 and standard deviation 1."""


@dataclass(frozen=True)
class NKDTerm(Term, place="losses.nkd"):
    """Normalised knowledge distillation, `vitkd_ds.nkd_loss`."""

    module = "vitkd_ds.losses.nkd:NKD"
    needs = Needs(logits=True, labels=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits in the summand for the non-target classes. A higher value gives softer
    probabilities."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Weight of the summand for the non-target classes; 1 in the paper."""


@dataclass(frozen=True)
class ViTKDTerm(Term, place="losses.vitkd"):
    """ViTKD's feature distillation, `vitkd_ds.ViTKDLoss`. alpha and beta are the weights of its two summands."""

    module = "vitkd_ds.losses.vitkd:ViTKD"
    # 6 bytes for the teacher's three features. 16 bytes (measured) for backward: the masked tokens and the first
    # convolution's output in bf16, and three differences in fp32.
    cost = MeasuredCost("ViTKD", bytes_per_patch=22)
    lowered_by = {"vitkd_mimic": "alpha", "vitkd_generate": "beta"}

    alpha: Annotated[Number, Ge(0)] = 3e-5
    """Weight of the summand that mimics the teacher's shallow blocks: squared differences summed over tokens and
    channels."""
    beta: Annotated[Number, Ge(0)] = 3e-6
    """Weight of the summand that regenerates the teacher's last block: squared differences summed in the same way."""
    scaled: bool = False
    """Multiply alpha and beta by 196 x 384 / (student tokens x teacher width). The paper's values are for sums over 196
    tokens of width 384. With scaled=true, these values fit models of any size. With scaled=false, as in the paper, the
    sums are not scaled, so they grow with the teacher's width."""
    mask_ratio: Annotated[Number, Interval(gt=0, lt=1)] = 0.5
    """Fraction of the tokens after the student's last block that are masked and then regenerated."""
    blocks: Annotated[tuple[int, ...], TWO_BLOCKS] = (0, 1)
    """Two mimicked blocks, counted from 0, the same in student and teacher. The paper uses the first two."""

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
    """Exponent of the teacher's probabilities, equal to 1 / temperature. The paper does not state the value for
    DeiT."""
    weighted: bool = True
    """Weight each image by the teacher's uncertainty, or by its certainty if gamma is above 1. false weights all images
    equally, which is TTM."""


@dataclass(frozen=True)
class DISTTerm(Term, place="losses.dist"):
    """Correlations between the probabilities of both models, `vitkd_ds.losses.dist_loss`."""

    module = "vitkd_ds.losses.dist:DIST"
    needs = Needs(logits=True)

    beta: Annotated[Number, Ge(0)] = 1.0
    """Weight of the correlations over the classes of an image."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Weight of the correlations over the images of a class."""
    scope: Literal["micro_batch", "all_ranks"] = "micro_batch"
    """Images over which a class's probabilities are correlated. micro_batch: one micro-batch of one rank. all_ranks:
    the current micro-batches of all ranks. Accumulated micro-batches are never combined."""


@dataclass(frozen=True)
class DKDTerm(Term, place="losses.dkd"):
    """Decoupled knowledge distillation, `vitkd_ds.losses.dkd_loss`. Labels must not be mixed."""

    module = "vitkd_ds.losses.dkd:DKD"
    needs = Needs(logits=True, labels=True)

    alpha: Annotated[Number, Ge(0)] = 1.0
    """Weight of the summand for the target class, which compares how the models divide probability between the
    label and all other classes."""
    beta: Annotated[Number, Ge(0)] = 0.5
    """Weight of the summand for the non-target classes, which compares the models' distributions over these classes."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of all logits. A higher value gives softer probabilities."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if labels are mixed."""
        if mixing := next((key for key in ("mixup_alpha", "cutmix_alpha") if getattr(run.augment, key)), None):
            raise ValueError(
                f"losses.dkd needs one label per image, but augment.{mixing}={getattr(run.augment, mixing):g} mixes "
                f"labels. Set --augment.{mixing}=0, or use losses.nkd, which is defined for mixed labels."
            )


@dataclass(frozen=True)
class DistillationTokenTerm(Term, place="losses.distillation_token"):
    """DeiT's distillation token: the student's second head learns from the teacher, its first head from other terms."""

    module = "vitkd_ds.losses.distillation_token:DistillationToken"
    needs = Needs(logits=True, second_head=True)

    kind: Literal["hard", "soft"] = "hard"
    """Target of the second head. hard: the teacher's most likely class. soft: the teacher's probabilities."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits for kind=soft. A higher value gives softer probabilities."""


@dataclass(frozen=True)
class VkDTerm(Term, place="losses.vkd"):
    """Distillation of pooled tokens by an orthogonal projector, `vitkd_ds.losses.vkd_loss`, for any timm teacher."""

    module = "vitkd_ds.losses.vkd:VkD"
    needs = Needs(tokens=True)


@dataclass(frozen=True)
class SpectralTerm(PairedBlocksTerm, place="losses.spectral"):
    """Distillation of token maps' spectra, `vitkd_ds.losses.spectral_loss`. Both models need the same patch grid."""

    module = "vitkd_ds.losses.spectral:Spectral"

    @property
    def needs(self) -> Needs:
        """Chosen blocks of both models."""
        return Needs(tokens=True, student_blocks=self.student_blocks, teacher_blocks=self.teacher_blocks)


@dataclass(frozen=True)
class FeatureTerm(Term, place="losses.feature"):
    """Distillation of class and patch tokens by adapters, `vitkd_ds.losses.feature`. It needs no labels and accepts any
    timm teacher."""

    module = "vitkd_ds.losses.feature:Feature"
    needs = Needs(tokens=True)
    is_watched = True

    target: Literal["raw", "layer_norm", "standardize", "phi_s"] = "standardize"
    """Transform of the teacher's features. raw: none. layer_norm: LayerNorm. standardize: each channel is shifted and
    scaled to mean 0 and variance 1. phi_s: features are rotated and scaled by one number, so that all channels have the
    same variance. For the last two, see calibration_batches."""
    calibration_batches: Annotated[int, Gt(0)] = 32
    """Number of micro-batches per rank from which standardize or phi_s is computed before the first update. Checkpoints
    store the transform."""


@dataclass(frozen=True)
class RelationTerm(Term, place="losses.relation"):
    """Distillation of cosine similarities, `vitkd_ds.losses.relation`: between the tokens of an image, and between the
    image and recent images. Both models need the same patch grid."""

    module = "vitkd_ds.losses.relation:Relation"
    needs = Needs(tokens=True)

    temperature: Annotated[Number, Gt(0)] = 0.07
    """Divisor of the cosine similarities before the softmax."""
    queue: Annotated[int, Gt(0)] = 4096
    """Number of images to compare each image with: the most recent images of all ranks, including the image
    itself. It must be at least global_batch_size."""

    def check_run(self, run: Any) -> None:
        """Raise ValueError if the queue is smaller than the global batch."""
        least = f"be at least global_batch_size={run.global_batch_size}, so that it holds the images of all ranks"
        require(self.queue >= run.global_batch_size, "losses.relation.queue", self.queue, least)


@dataclass(frozen=True)
class AttentionTerm(PairedBlocksTerm, place="losses.attention"):
    """Distillation of blocks' attention maps, `vitkd_ds.losses.attention`. Both models need the same patch grid."""

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
    """Loss terms, each with a weight (0 is off) and a schedule. The total loss is their weighted sum."""

    balance: bool = field(default=False, kw_only=True)
    """Multiply each term by a further factor, which is learned from the magnitudes of the terms. The factors have a
    mean of 1. The method is DTO-KD without per-term gradients."""

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
"""Terms of other installed packages, and error messages for invalid terms. `check_run` raises the first message."""
TERMS |= _OTHERS

_FIELDS = {"__annotations__": TERMS, "__module__": __name__, "__doc__": Losses.__doc__}
LossesConfig = dataclass(frozen=True)(
    type(Losses)("LossesConfig", (Losses,), _FIELDS | {name: term() for name, term in TERMS.items()})
)
"""`Losses` with one field for each of TERMS."""
