"""Muon for the weight matrices of the student's blocks, AdamW for all other parameters.

Sources: the update is the same as in torch.optim.Muon (KellerJordan/Muon). Its scale is from arXiv 2502.16982, so Muon
and AdamW can share one learning rate and one weight decay. Differs: with optim.qkv=thirds, a fused qkv weight is
treated as three matrices.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import muon

from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.engine.flat import Group
from vitkd_ds.engine.optimizers.base import Optimizer
from vitkd_ds.models.distiller import Distiller

MOMENTUM = 0.95
ITERATIONS = 5
"""Newton-Schulz iterations per update, in bf16."""
SETTINGS: dict[str, Any] = {
    "momentum": MOMENTUM,
    "nesterov": True,
    "ns_coefficients": (3.4445, -4.7750, 2.0315),
    "ns_steps": ITERATIONS,
    "eps": 1e-7,
    "adjust_lr_fn": "match_rms_adamw",
    "has_complex": False,
}
"""Defaults of torch.optim.Muon, except that updates are scaled to the root mean square of AdamW's updates."""


class MuonAndAdamW(torch.optim.AdamW):
    """Optimizer that applies Muon to groups with the key `shapes`, one matrix at a time, and AdamW to other groups.

    torch.optim.Muon accepts only parameters of two dimensions, but ZeRO passes one long tensor per group. Therefore
    this class calls the function that torch.optim.Muon uses, with the matrices as views of that tensor.
    """

    leave_out: Tensor | None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the parameters that have a gradient."""
        whole = [(p, p.grad, group) for group in self.param_groups if "shapes" in group for p in group["params"]]
        for p, gradient, group in whole:
            if gradient is not None:
                self._orthogonalize(p, gradient, group)
            p.grad = None  # hide it from AdamW
        loss = super().step(closure)
        for p, gradient, _ in whole:
            p.grad = gradient
        return loss

    def _orthogonalize(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if "momentum" not in self.state[p]:
            self.state[p]["momentum"] = torch.zeros_like(p)
        momentum = self.state[p]["momentum"]
        before = [value.clone() for value in (p, momentum)]
        views = [_matrices(value, group["shapes"]) for value in (p, gradient, momentum)]
        muon(*views, lr=group["lr"], weight_decay=group["weight_decay"], **SETTINGS)
        if self.leave_out is not None:  # decided on the device, so that nothing waits for it
            for value, old in zip((p, momentum), before):
                value.copy_(torch.where(self.leave_out > 0, old, value))


def _matrices(values: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Return views into `values`: matrices of these shapes, one after another from its start."""
    sizes = [shape.numel() for shape in shapes]
    pieces = values.split([*sizes, len(values) - sum(sizes)])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]


def iteration_flops(rows: int, columns: int) -> int:
    """Return the number of multiplications and additions in one Newton-Schulz iteration of a matrix."""
    short, long = sorted((rows, columns))
    return 4 * short * short * long + 2 * short**3


class Choice(Optimizer, MuonAndAdamW):
    """Muon for block matrices and AdamW for all other parameters, configured by the settings in `optim`.

    Both use optim.lr and optim.weight_decay. Only Muon uses optim.qkv. Only AdamW uses optim.betas and optim.eps.
    """

    def __init__(self, groups: list[dict[str, Any]], optim: OptimConfig, *, is_fused: bool) -> None:
        super().__init__(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=is_fused)
        self.ema_decay = optim.ema_decay

    @staticmethod
    def groups(distiller: Distiller, optim: OptimConfig) -> list[Group]:
        """Return three groups: block matrices, other parameters with weight decay, parameters without weight decay.

        Raises:
            ValueError: the student has no linear layers in blocks.
        """
        decayed, undecayed = distiller.split_by_decay()
        linear = [
            (name, module.weight)
            for name, module in distiller.student.named_modules()
            if isinstance(module, nn.Linear) and "blocks." in name
        ]
        thirds = {p: 3 for name, p in linear if name.endswith(".qkv") and optim.qkv == "thirds"}
        inner = {p for _, p in linear}
        matrices = [p for p in decayed if p in inner]
        if not matrices:
            raise ValueError("optim.name=muon needs a student with linear layers in blocks. Use --optim.name=adamw.")
        others = [p for p in decayed if p not in inner]

        def flops(p: Tensor) -> int:
            num = thirds.get(p, 1)
            return num * iteration_flops(len(p) // num, p.shape[1])

        return [
            Group("matrices", matrices, weight_decay=optim.weight_decay, num_states=1, cost=flops, row_blocks=thirds),
            Group("with_weight_decay", others, weight_decay=optim.weight_decay, num_states=2),
            Group("without_weight_decay", undecayed, weight_decay=0.0, num_states=2),
        ]
