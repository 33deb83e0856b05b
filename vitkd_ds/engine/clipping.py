"""Norm, finite check and clipping of a sharded gradient, in a few kernels and one collective.

DeepSpeed does the same three things parameter by parameter: it copies each gradient to fp64, and scans each for inf and
nan besides. With `"compute_grad_norm": false` and `"check_grad_overflow": false` in its file it leaves them to us; the
arithmetic here is its own, operation by operation, so that switching changes no bit of the result on a CPU.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vitkd_ds.engine import ranks


@torch.no_grad()
def clip_gradients(groups: Iterable[Sequence[Tensor]], max_norm: float, *, veto: Tensor, count: Tensor) -> Tensor:
    """Scale the gradient, in place, to a norm of at most `max_norm`. Collective; does not wait for the device.

    norm = sqrt(sum over ranks, groups and elements of g^2), then g *= 1 / max(1, (norm + 1e-6) / max_norm).

    Args:
        groups: per parameter group this rank's part of the gradient, fp32; the parts of the ranks do not overlap.
        max_norm: 0 is no clipping.
        veto: fp32 scalar, above 0 if this rank has a reason of its own against the update.
        count: fp32 scalar. It and `veto` are summed over the ranks in the same collective.

    Returns:
        fp32 [3], the same on all ranks: the norm before clipping, and the sums of `veto` and `count`. The norm is nan
        when it is not finite or there is a veto, and then every element of every rank's gradient has become nan, so
        that whoever looks at one of them sees it.

    **Source**: DeepSpeed 0.19.8, `get_grad_norm_direct`, `combine_grad_norm_groups` and `unscale_and_clip_grads`.
    """
    groups = [list(group) for group in groups]
    # fp64 inside the reduction: 1e8 squares lose digits in fp32.
    squares = [torch.stack(torch._foreach_norm(group, 2, dtype=torch.float64)).pow(2).sum() for group in groups]
    sums = ranks.sum_over_ranks(torch.stack([*(square.float() for square in squares), veto, count]))
    norm = torch.linalg.vector_norm(sums[:-2].sqrt())
    norm = torch.where(torch.isfinite(norm) & (sums[-2] == 0), norm, torch.nan)
    clip = torch.clamp((norm + 1e-6) / max_norm, min=1.0) if max_norm else 1 + 0 * norm
    scale = 1.0 / clip
    for group in groups:
        torch._foreach_mul_(group, scale)
    return torch.cat([norm[None], sums[-2:]])
