"""Which loss terms make the total of a run, each with its weight, its schedule and its own numbers. Whoever adds a loss
adds a term here, or in a package of their own by an entry point, and nothing in `vitkd_ds.config.run`.

Nothing here imports torch: a term names its module, and says what it compares as a function of its settings.
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
"""What the name of a term's learned factor begins with in the log."""


@dataclass(frozen=True)
class CrossEntropyTerm(Term, place="losses.ce"):
    """Cross-entropy with the labels, mixed and smoothed."""

    module = "vitkd_ds.losses.cross_entropy:CrossEntropy"
    needs = Needs(labels=True)

    weight: Annotated[Number, Ge(0)] = 1.0
    label_smoothing: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Part of the target that is spread evenly over all classes; 0 is none."""


@dataclass(frozen=True)
class KDTerm(Term, place="losses.kd"):
    """Hinton's distillation, `vitkd_ds.kd_loss`."""

    module = "vitkd_ds.losses.kd:KD"
    needs = Needs(logits=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits before the softmax; higher is softer."""
    standardize: bool = False
    """Give each image's logits mean 0 and standard deviation 1 first."""


@dataclass(frozen=True)
class NKDTerm(Term, place="losses.nkd"):
    """Normalised distillation, `vitkd_ds.nkd_loss`."""

    module = "vitkd_ds.losses.nkd:NKD"
    needs = Needs(logits=True, labels=True)

    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both models' logits in the part on non-target classes; higher is softer."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Factor of the part on non-target classes; the paper's is 1."""


@dataclass(frozen=True)
class ViTKDTerm(Term, place="losses.vitkd"):
    """Feature distillation, `vitkd_ds.ViTKDLoss`; alpha and beta weigh its two halves inside the term."""

    module = "vitkd_ds.losses.vitkd:ViTKD"
    # 6 bytes for the teacher's three features, and 16, as measured, for backward: the masked tokens and the first
    # convolution's output in bf16, three differences in fp32.
    cost = MeasuredCost("ViTKD", bytes_per_patch=22)
    lowered_by = {"vitkd_mimic": "alpha", "vitkd_generate": "beta"}

    alpha: Annotated[Number, Ge(0)] = 3e-5
    """Factor of the mimicked shallow blocks, whose squared differences are summed over tokens and channels."""
    beta: Annotated[Number, Ge(0)] = 3e-6
    """Factor of the regenerated last block, summed likewise."""
    scaled: bool = False
    """Multiply alpha and beta by 196 x 384 / (student's tokens x teacher's width), so that the paper's values, which
    weigh sums over 196 tokens of width 384, suit a pair of any size. Without it they weigh plain sums, as in the
    paper, whose wider teachers weigh more."""
    mask_ratio: Annotated[Number, Interval(gt=0, lt=1)] = 0.5
    """Part of the student's tokens of the last block that is masked before it is regenerated."""
    blocks: Annotated[tuple[int, ...], TWO_BLOCKS] = (0, 1)
    """Blocks whose output is mimicked, counted from 0 in student and teacher alike; the paper's are the first two."""

    @property
    def needs(self) -> Needs:
        """What it compares."""
        return Needs(tokens=True, student_blocks=self.blocks, teacher_blocks=self.blocks)


@dataclass(frozen=True)
class WTTMTerm(Term, place="losses.wttm"):
    """Transformed teacher matching, `vitkd_ds.losses.wttm_loss`."""

    module = "vitkd_ds.losses.wttm:WTTM"
    needs = Needs(logits=True)

    gamma: Annotated[Number, Gt(0)] = 0.8
    """Power of the teacher's probabilities, 1 / temperature; the paper's DeiT value is published nowhere."""
    weighted: bool = True
    """Weigh each image by how unsure the teacher is, or with gamma above 1 by how sure it is; false is TTM."""


@dataclass(frozen=True)
class DISTTerm(Term, place="losses.dist"):
    """Correlations of probabilities, `vitkd_ds.losses.dist_loss`."""

    module = "vitkd_ds.losses.dist:DIST"
    needs = Needs(logits=True)

    beta: Annotated[Number, Ge(0)] = 1.0
    """Factor of the correlations over the classes of an image."""
    gamma: Annotated[Number, Ge(0)] = 1.0
    """Factor of the correlations over the images of a class."""
    scope: Literal["micro_batch", "all_ranks"] = "micro_batch"
    """Images of which a class is correlated: the rank's micro-batch, or those of all ranks, which are gathered. Those
    of accumulated micro-batches are never together."""


@dataclass(frozen=True)
class DKDTerm(Term, place="losses.dkd"):
    """Decoupled distillation, `vitkd_ds.losses.dkd_loss`; for labels that are not mixed."""

    module = "vitkd_ds.losses.dkd:DKD"
    needs = Needs(logits=True, labels=True)

    alpha: Annotated[Number, Ge(0)] = 1.0
    """Factor of the label against the rest."""
    beta: Annotated[Number, Ge(0)] = 0.5
    """Factor of the rest by itself."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of all logits; higher is softer."""

    def check_run(self, run: Any) -> None:
        """Refuse mixed labels."""
        if mixing := next((key for key in ("mixup_alpha", "cutmix_alpha") if getattr(run.augment, key)), None):
            raise ValueError(
                f"losses.dkd needs one label an image, found augment.{mixing}={getattr(run.augment, mixing):g}: set "
                f"--augment.{mixing}=0, or take nkd, which is defined for mixed labels"
            )


@dataclass(frozen=True)
class DistillationTokenTerm(Term, place="losses.distillation_token"):
    """DeiT's distillation token: the student's second head learns from the teacher, the first from the other terms."""

    module = "vitkd_ds.losses.distillation_token:DistillationToken"
    needs = Needs(logits=True, second_head=True)

    kind: Literal["hard", "soft"] = "hard"
    """What it learns: the teacher's most likely class, or its probabilities."""
    temperature: Annotated[Number, Gt(0)] = 1.0
    """Divisor of both logits in the soft kind; higher is softer."""


@dataclass(frozen=True)
class VkDTerm(Term, place="losses.vkd"):
    """Pooled tokens through an orthogonal projector, `vitkd_ds.losses.vkd_loss`; for teachers of any kind."""

    module = "vitkd_ds.losses.vkd:VkD"
    needs = Needs(tokens=True)


@dataclass(frozen=True)
class SpectralTerm(PairedBlocksTerm, place="losses.spectral"):
    """Spectra of token maps, `vitkd_ds.losses.spectral_loss`; for models of one patch grid."""

    module = "vitkd_ds.losses.spectral:Spectral"

    @property
    def needs(self) -> Needs:
        """What it compares."""
        return Needs(tokens=True, student_blocks=self.student_blocks, teacher_blocks=self.teacher_blocks)


@dataclass(frozen=True)
class FeatureTerm(Term, place="losses.feature"):
    """Class and patch tokens through adapters, `vitkd_ds.losses.feature`; for teachers of any kind, without labels."""

    module = "vitkd_ds.losses.feature:Feature"
    needs = Needs(tokens=True)
    is_watched = True

    target: Literal["raw", "layer_norm", "standardize", "phi_s"] = "standardize"
    """What the teacher's features are turned into: nothing, LayerNorm, or a transform by their statistics, which gives
    every channel mean 0 and variance 1, or all channels equal variances by a rotation and one scale."""
    calibration_batches: Annotated[int, Gt(0)] = 32
    """Micro-batches of each rank that the statistics are taken of, before the first update; the checkpoint has them."""


@dataclass(frozen=True)
class RelationTerm(Term, place="losses.relation"):
    """Cosines among tokens and with the last images, `vitkd_ds.losses.relation`; for models of one patch grid."""

    module = "vitkd_ds.losses.relation:Relation"
    needs = Needs(tokens=True)

    temperature: Annotated[Number, Gt(0)] = 0.07
    """Divisor of the cosines before the softmax."""
    queue: Annotated[int, Gt(0)] = 4096
    """The last images, of all ranks, that an image is compared with, itself among them; at least the global batch."""

    def check_run(self, run: Any) -> None:
        """Refuse a queue in which some ranks' images have no place."""
        least = f"be at least global_batch_size={run.global_batch_size}, so that the images of all ranks have a place"
        require(self.queue >= run.global_batch_size, "losses.relation.queue", self.queue, least)


@dataclass(frozen=True)
class AttentionTerm(PairedBlocksTerm, place="losses.attention"):
    """Attention maps of chosen blocks, `vitkd_ds.losses.attention`; for vision transformers of one patch grid."""

    module = "vitkd_ds.losses.attention:Attention"

    student_blocks: tuple[int, ...] = (-1,)
    """Blocks of the student, counted from 0, or from the last: -1."""
    teacher_blocks: tuple[int, ...] = (-1,)
    """Blocks of the teacher that they are compared with, one by one."""

    @property
    def needs(self) -> Needs:
        """What it compares."""
        return Needs(tokens=True, student_attention=self.student_blocks, teacher_attention=self.teacher_blocks)


@dataclass(frozen=True)
class Losses(Part, place="losses"):
    """Which terms make the total: any set, each with a weight (0 is off) and a schedule. Its other fields are TERMS."""

    balance: bool = field(default=False, kw_only=True)
    """Learn a factor of each term beside its weight, of the terms' sizes alone (DTO-KD's cheap form), of mean 1."""

    @property
    def label_smoothing(self) -> float:
        """Part of each target that is spread evenly over all classes."""
        return self.ce.label_smoothing

    def without_label_smoothing(self) -> "Losses":
        """Return a copy whose targets are the labels as they are."""
        return replace(self, ce=replace(self.ce, label_smoothing=0.0))

    def terms(self) -> dict[str, Any]:
        """All terms by name."""
        return {name: getattr(self, name) for name in TERMS}

    def active(self) -> dict[str, Any]:
        """The terms whose weight is not 0, by name."""
        return {name: term for name, term in self.terms().items() if term.weight}

    @property
    def needs(self) -> Needs:
        """The union of what the active terms compare."""
        needs = Needs()
        for term in self.active().values():
            needs |= term.needs
        return needs


NAMES_TAKEN = ("student", "balance", "blocks", "forward", "maps", "parts", "training", *dir(Losses))
"""Names of a `Distiller` and of `Losses` that no term may have."""
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
"""Every term by its name, in the order in which the log shows them."""
_OTHERS, BAD_ENTRY_POINTS = entry_points.find_terms({*TERMS, *NAMES_TAKEN})
"""Terms of other installed packages, and what is wrong with those that cannot be added: `check_run` says it."""
TERMS |= _OTHERS

_FIELDS = {"__annotations__": TERMS, "__module__": __name__, "__doc__": Losses.__doc__}
LossesConfig = dataclass(frozen=True)(
    type(Losses)("LossesConfig", (Losses,), _FIELDS | {name: term() for name, term in TERMS.items()})
)
"""See `Losses`: the dataclass with a field for each of TERMS."""
