"""The trainable module: the student together with all parameters of the losses.

The engine calls it once per micro-batch. The losses run inside the engine's forward, so their parameters (aligners,
mask token, projector) are sharded, clipped, checkpointed and compiled together with the student. The teacher is not a
part of the module (see `vitkd_ds.engine.teacher`); only its features are passed in.
"""

from importlib import import_module
from typing import Any, Callable, Mapping

import torch
from torch import Tensor, nn

from vitkd_ds.config.losses import FACTOR, LossesConfig, Term
from vitkd_ds.config.teachers import by_name, teacher_of
from vitkd_ds.losses.balance import Balance
from vitkd_ds.losses.part import Features, LossPart, PairInfo, alone
from vitkd_ds.models.attention import AttentionMaps
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.selection import logits_and_attention


class Distiller(nn.Module):
    """Student and losses.

    Args:
        student: the timm model to train and export.
        losses: settings of the terms. A term with weight 0 is not computed and has no parameters.
        pair: widths and patch grids of student and teacher; None if no term compares tokens. With several teachers, a
            dict from teacher name to such a value.
        gather: function that concatenates the tensors of all ranks, see `LossPart`; None for a single rank.
        keep_tokens: number of patches of a full-size image that the student's attention selects for the teacher; 0
            selects all. Of smaller images, the same fraction is selected. With several teachers, a dict from teacher
            name to number.
    """

    def __init__(
        self,
        student: nn.Module,
        losses: LossesConfig,
        pair: PairInfo | dict[str, PairInfo | None] | None,
        gather: Callable[[Tensor], Tensor] | None = None,
        *,
        keep_tokens: int | dict[str, int] = 0,
    ) -> None:
        super().__init__()
        self.student = student
        self.blocks = losses.needs.tapped("student")
        attention = losses.needs.student_attention
        self.maps = AttentionMaps(student, attention) if attention else None
        if losses.needs.second_head:
            student.set_distilled_training(True)  # train mode returns both heads' logits, eval mode their mean
        self.keep_tokens = {name: number for name, number in by_name(keep_tokens).items() if number}
        self._terms = tuple(losses.active())
        pairs = by_name(pair)
        self._teachers = {name: teacher_of(term, pairs) for name, term in losses.active().items()}
        for name, term in losses.active().items():
            self.add_module(name, part_of(term)(term, pairs.get(self._teachers[name]), gather or alone))
        if losses.balance:
            self.balance = Balance(len(self._terms), gather or alone)

    @property
    def parts(self) -> dict[str, LossPart]:
        """Modules of the active terms, by name."""
        return {name: self._modules[name] for name in self._terms}

    def forward(
        self,
        images_BCHW: Tensor,
        targets_BK: Tensor,
        teacher: Features | Callable[[Tensor], Features] | dict[str, Any] | None,
        weights: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Compute the loss terms of one micro-batch and their total.

        Args:
            images_BCHW: normalised images in the student's dtype.
            targets_BK: soft labels, fp32; [B, 0] without labels.
            teacher: the teacher's features of the same images; None if no term needs them. With keep_tokens, a
                function that computes the features from the selected patch indices, int64 [B, keep_tokens]. With
                several teachers, a dict from teacher name to such a value.
            weights: weight of each active term at this step by name, fp32 scalars.

        Returns:
            fp32 scalars by name. `total` is for backward: the sum of weight x term (x factor, with `losses.balance`)
            over the terms. All other values are for the log. Each term contributes its unweighted, detached summands;
            for example, ViTKD's term is the sum of `vitkd_mimic` and `vitkd_generate`. With `losses.balance`,
            balance_TERM is the factor of a term.
        """
        teachers = by_name(teacher)
        if self.keep_tokens:
            student, attention_BP = logits_and_attention(self.student, images_BCHW)
            # Smaller images (data.image_sizes) have fewer patches, and the teacher sees the same fraction of them.
            whole = self.student.patch_embed.num_patches
            numbers = {name: max(1, n * attention_BP.shape[1] // whole) for name, n in self.keep_tokens.items()}
            kept = {name: attention_BP.topk(number).indices for name, number in numbers.items()}
            teachers = teachers | {name: teachers[name](kept_BL) for name, kept_BL in kept.items()}
        else:
            student = tap_features(self.student, images_BCHW, self.blocks, maps=self.maps)
        parts = {
            name: part(student, teachers.get(self._teachers[name]), targets_BK) for name, part in self.parts.items()
        }
        keys = ["total", *(key for part in parts.values() for key in part)]
        if len(set(keys)) < len(keys):
            raise ValueError(f"values of loss terms must have different names, none of them total, got {sorted(keys)}")
        values = {name: sum(part.values()) for name, part in parts.items()}
        weighted = torch.stack([weights[name] * value for name, value in values.items()])
        factors: dict[str, Tensor] = {}
        if "balance" in self._modules:
            factors_T = self.balance(torch.stack(list(values.values())))
            weighted = weighted * factors_T
            factors = {FACTOR + name: factor for name, factor in zip(values, factors_T.unbind())}
        total = weighted.sum()
        # Detach the parts: DeepSpeed hooks every output that has a gradient, so it would scale a term for accumulation
        # twice, once as an output and once inside the total.
        return (
            {"total": total} | {key: loss.detach() for part in parts.values() for key, loss in part.items()} | factors
        )

    def split_by_decay(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return two lists: the trainable parameters with weight decay, and the trainable parameters without it.

        Norms, biases, LayerScale and the weights in timm's no_weight_decay have no weight decay. ViTKD's mask token has
        weight decay, as in the official code.
        """
        exempt = {f"student.{name}" for name in getattr(self.student, "no_weight_decay", set)()}
        decayed, undecayed = [], []
        for name, p in self.named_parameters():
            if p.requires_grad:
                (undecayed if p.ndim <= 1 or name in exempt else decayed).append(p)
        return decayed, undecayed


def part_of(term: Term) -> type[LossPart]:
    """Import and return the `LossPart` class of a term."""
    module, _, name = term.module.partition(":")
    return getattr(import_module(module), name)
