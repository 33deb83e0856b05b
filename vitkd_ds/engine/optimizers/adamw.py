"""torch's AdamW, with two fp32 moments per element. ZeRO may split a weight at any element."""

from typing import Any

import torch

from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.engine.flat import Group
from vitkd_ds.engine.optimizers.base import Optimizer
from vitkd_ds.models.distiller import Distiller


class Choice(Optimizer, torch.optim.AdamW):
    """torch.optim.AdamW with optim.lr, betas, eps and weight_decay."""

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig, *, is_fused: bool) -> None:
        super().__init__(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=is_fused)
        self.ema_decay = optim.ema_decay

    @staticmethod
    def groups(distiller: Distiller, optim: OptimConfig) -> list[Group]:
        """Return two groups: the parameters with weight decay, and the parameters without weight decay."""
        decayed, undecayed = distiller.split_by_decay()
        return [
            Group("with_weight_decay", decayed, weight_decay=optim.weight_decay, num_states=2),
            Group("without_weight_decay", undecayed, weight_decay=0.0, num_states=2),
        ]
