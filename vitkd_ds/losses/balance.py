"""Loss factors learned from loss magnitudes."""

from typing import Callable

import torch
from torch import Tensor, nn

from vitkd_ds.losses.part import alone
from vitkd_ds.losses.precision import at_least_fp32

LEARNING_RATE, WEIGHT_DECAY = 0.025, 0.01


class Balance(nn.Module):
    """Learned factors for T loss terms: the factor of term i is T * p_i, where p = softmax(w).

    w is updated by gradient descent on 1/2 (sum_i p_i log L_i)^2, where L_i is the value of term i. This update needs
    only the values of the terms, not their gradients.

    Args:
        num_terms: T, the number of terms. All factors start at 1.
        gather: collective that concatenates tensors of all ranks (see `LossPart`); it keeps the factors equal on all
            ranks.

    **Source**: DTO-KD (ICLR 2026), in the form that needs no gradient per term, with a learning rate of 0.025 and a
    weight decay of 0.01.

    **Differs**: w is updated by plain gradient descent, once per micro-batch even under gradient accumulation. The
    factors are multiplied by T, so that a term's weight has the same scale with and without balancing.
    """

    _keep_in_fp32_modules_strict = ["w_T"]  # DeepSpeed rounds all other buffers to bf16

    def __init__(self, num_terms: int, gather: Callable[[Tensor], Tensor] = alone) -> None:
        super().__init__()
        self.gather = gather
        self.register_buffer("w_T", torch.zeros(num_terms))

    def forward(self, values_T: Tensor) -> Tensor:
        """Return the factors [T] for this micro-batch, and update w for the next one.

        The update uses the values of the terms averaged over ranks.

        Args:
            values_T: this rank's values of the terms before weighting; they are positive.
        """
        p_T = self.w_T.softmax(0)
        factors_T = len(p_T) * p_T
        log_T = self.gather(at_least_fp32(values_T.detach())[None]).mean(0).clamp_min(1e-8).log()
        total = (p_T * log_T).sum()
        gradient_T = total * p_T * (log_T - total)
        self.w_T -= LEARNING_RATE * (gradient_T + WEIGHT_DECAY * self.w_T)
        return factors_T
