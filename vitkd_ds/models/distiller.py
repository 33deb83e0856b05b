"""The one trainable module: the student together with every parameter of the losses.

The engine calls it once per micro-batch. As the losses run inside the engine's forward, their aligners, mask token and
projector are sharded, clipped, checkpointed and compiled with the student. The teacher stays outside
(`vitkd_ds.engine.teacher`); only its features come in.
"""

from typing import Any, Mapping

import torch
from torch import Tensor, nn

from vitkd_ds.config.losses import LossesConfig
from vitkd_ds.losses import ViTKDLoss, kd_loss, nkd_loss, soft_cross_entropy
from vitkd_ds.models.build import PairInfo
from vitkd_ds.models.features import Features, tap_features


class Distiller(nn.Module):
    """Student and losses.

    Args:
        student: the timm model that is trained and exported.
        losses: the terms; those with weight 0 are neither computed nor given parameters.
        pair: widths and patch grids of student and teacher; None where no term compares tokens.
    """

    def __init__(self, student: nn.Module, losses: LossesConfig, pair: PairInfo | None) -> None:
        super().__init__()
        self.student = student
        self.terms: dict[str, Any] = losses.active()
        self.blocks = losses.tapped_blocks
        if "vitkd" in self.terms:
            term = losses.vitkd
            numbers = {"alpha": term.alpha, "beta": term.beta, "mask_ratio": term.mask_ratio, "scaled": term.scaled}
            self.vitkd = ViTKDLoss(**vars(pair), **numbers)

    def forward(
        self, images_BCHW: Tensor, targets_BK: Tensor, teacher: Features | None, weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Compute the named loss terms of one micro-batch, and their total.

        Args:
            images_BCHW: normalised images in the student's dtype.
            targets_BK: soft labels, fp32.
            teacher: the teacher's features of the same images; None if no term needs them.
            weights: weight of each active term at this step, fp32 scalars.

        Returns:
            fp32 scalars: `total`, the sum of weight x term, for backward, and each term, unweighted and detached, for
            the log. ViTKD's term is the sum of `vitkd_mimic` and `vitkd_generate`.
        """
        student = tap_features(self.student, images_BCHW, self.blocks)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, term in self.terms.items():
            if name == "ce":
                parts[name] = {"ce": soft_cross_entropy(student.logits_BK, targets_BK)}
            elif name == "kd":
                parts[name] = {"kd": kd_loss(student.logits_BK, teacher.logits_BK, temperature=term.temperature)}
            elif name == "nkd":
                numbers = {"temperature": term.temperature, "gamma": term.gamma}
                parts[name] = {"nkd": nkd_loss(student.logits_BK, teacher.logits_BK, targets_BK, **numbers)}
            elif name == "vitkd":
                halves = self.vitkd(student.shallow_BLPD, student.deep_BPD, teacher.shallow_BLPD, teacher.deep_BPD)
                parts[name] = {"vitkd_mimic": halves["mimic"], "vitkd_generate": halves["generate"]}
        total = torch.stack([weights[name] * sum(part.values()) for name, part in parts.items()]).sum()
        # Detached, because DeepSpeed hooks every output that has a gradient, and would scale a term inside the total
        # for accumulation a second time.
        return {"total": total} | {key: loss.detach() for part in parts.values() for key, loss in part.items()}

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Split the parameters for AdamW into two groups, with weight decay and without.

        Norms, biases, LayerScale and the names in timm's no_weight_decay have none. ViTKD's mask token does, as in the
        official code.
        """
        exempt = {f"student.{name}" for name in self.student.no_weight_decay()}
        decayed, undecayed = [], []
        for name, p in self.named_parameters():
            if p.requires_grad:
                (undecayed if p.ndim <= 1 or name in exempt else decayed).append(p)
        return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
