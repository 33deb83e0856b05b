"""AdamW that also keeps the exponential moving average of the weights.

DeepSpeed hands the optimizer its own shard of the flat fp32 master weights, so an average that is optimizer state is
fp32, sharded by ZeRO, and saved and restored with the checkpoint, at no extra code. A bf16 average could not hold it:
a step of 4e-5 of the difference is below its resolution.
"""

from typing import Any, Iterable

import torch


class AdamWithEMA(torch.optim.AdamW):
    """torch.optim.AdamW with a state `ema` = decay * ema + (1 - decay) * parameter after each update.

    The average starts from the parameters before the first update. Where torch's fused kernel is used, the attribute
    `found_inf` (fp32 scalar on the device, as torch.amp.GradScaler sets it) leaves update and average out if it is 1.

    Args:
        params: parameter groups.
        ema_decay: part that is kept at each update; 0 keeps no average.
        **adamw: arguments of torch.optim.AdamW.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, ema_decay: float, **adamw: Any) -> None:
        super().__init__(params, **adamw)
        self.ema_decay = ema_decay
        self.found_inf: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One AdamW update, then one of the average."""
        if not self.ema_decay:
            return super().step(closure)
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        starts = [(p, p.detach().clone()) for p in params if "ema" not in self.state[p]]
        loss = super().step(closure)
        for p, start in starts:
            self.state[p]["ema"] = start
        part = 1 - self.ema_decay
        for p in params:
            self.state[p]["ema"].lerp_(p, part if self.found_inf is None else part * (1 - self.found_inf))
        return loss
