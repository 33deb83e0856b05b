"""Factors of the terms that are learnt of the terms' sizes."""

from typing import Callable

import torch
from torch import Tensor, nn

from vitkd_ds.losses.part import alone
from vitkd_ds.losses.precision import at_least_fp32

LEARNING_RATE, WEIGHT_DECAY = 0.025, 0.01


class Balance(nn.Module):
    """Learn p = softmax(w), a factor T p_i for each of T terms, by gradient descent on 1/2 (sum_i p_i log L_i)^2, of
    the terms' values L_i alone.

    Args:
        num_terms: T; all factors start at 1.
        gather: joins a tensor of all ranks, so that all have the same factors; see `LossPart`.

    **Source**: DTO-KD (ICLR 2026), the cheap form: learning rate 0.025, decay 0.01.

    **Differs**: plain gradient descent, a step for each micro-batch, also where gradients accumulate; factors are
    multiplied by T, so that weights mean the same with and without.
    """

    _keep_in_fp32_modules_strict = ["w_T"]  # read by DeepSpeed, which rounds other buffers to bf16

    def __init__(self, num_terms: int, gather: Callable[[Tensor], Tensor] = alone) -> None:
        super().__init__()
        self.gather = gather
        self.register_buffer("w_T", torch.zeros(num_terms))

    def forward(self, values_T: Tensor) -> Tensor:
        """Make the factors of this micro-batch, and learn of its values, means over the ranks, those of the next.

        Args:
            values_T: the unweighted terms, positive.
        """
        p_T = self.w_T.softmax(0)
        factors_T = len(p_T) * p_T
        log_T = self.gather(at_least_fp32(values_T.detach())[None]).mean(0).clamp_min(1e-8).log()
        total = (p_T * log_T).sum()
        gradient_T = total * p_T * (log_T - total)
        self.w_T -= LEARNING_RATE * (gradient_T + WEIGHT_DECAY * self.w_T)
        return factors_T
