"""Interface of an optimizer, with the moving average and update skipping that all optimizers share.

DeepSpeed passes the optimizer this rank's partition of the fp32 master weights, one tensor per group. The average is
optimizer state, so it is fp32, sharded by ZeRO and saved in checkpoints without extra code. bf16 would
be too coarse: with a decay of 0.99996, an update moves the average by 4e-5 of its difference from the weights, which
bf16 cannot resolve.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.engine.flat import Group
from vitkd_ds.models.distiller import Distiller


class Optimizer(torch.optim.Optimizer):
    """First of the two base classes of every `Choice`. It extends `step` of the other one, a torch optimizer.

    After each update, ema = decay * ema + (1 - decay) * parameter. The average starts from the parameters before the
    first update. A decay of 0 disables it.

    Attributes:
        leave_out: fp32 scalar on the device, set before `step`. With 1, `step` leaves weights, state and average
            unchanged; with 0 or None, it updates them.
    """

    ema_decay: float
    leave_out: Tensor | None = None

    @property
    def is_asynchronous(self) -> bool:
        """Whether `step` never waits for the device.

        This needs torch's fused kernels, which read `found_inf` on the device.
        """
        return self.param_groups[0]["fused"]

    @staticmethod
    def groups(distiller: Distiller, optim: OptimConfig) -> list[Group]:
        """Return the trainable parameters in groups, which become the optimizer's parameter groups in this order."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights, then the average, unless `leave_out` is 1."""
        part: Tensor | float = 1 - self.ema_decay
        if self.leave_out is not None and self.is_asynchronous:
            self.found_inf = self.leave_out
            part = part * (1 - self.leave_out)
        elif self.leave_out is not None and self.leave_out:
            return None
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        starts = [(p, p.detach().clone()) for p in params if self.ema_decay and "ema" not in self.state[p]]
        loss = super().step(closure)
        for p, start in starts:
            self.state[p]["ema"] = start
        for p in params if self.ema_decay else ():
            self.state[p]["ema"].lerp_(p, part)
        return loss


def optimizer_class(name: str) -> Any:
    """Return the class for `--optim.name`. Its arguments are parameter groups, `OptimConfig` and `is_fused`."""
    return import_module(f"vitkd_ds.engine.optimizers.{name}").Choice


def state_bytes(distiller: Distiller, optim: OptimConfig) -> int:
    """Return the bytes of optimizer state and moving average on all ranks together, without the fp32 weights."""
    groups = optimizer_class(optim.name).groups(distiller, optim)
    averages = int(optim.ema_decay > 0)
    return sum(4 * (group.num_states + averages) * p.numel() for group in groups for p in group.params)
