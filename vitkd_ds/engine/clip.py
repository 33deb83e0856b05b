"""Norm, finite check and clipping of the sharded gradient, in one collective."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vitkd_ds.engine import ranks


@torch.no_grad()
def clip_gradients(groups: Iterable[Sequence[Tensor]], max_norm: float, *, veto: Tensor, count: Tensor) -> Tensor:
    """Scale the gradient, in place, to a norm of at most `max_norm`. Collective; does not wait for the device.

    norm = sqrt(sum over ranks, groups and elements of g^2), then g *= 1 / max(1, (norm + 1e-6) / max_norm).

    Args:
        groups: this rank's part of the gradient in each parameter group, fp32; the parts of the ranks do not overlap.
        max_norm: 0 is no clipping.
        veto: fp32 scalar, above 0 if this rank has a reason of its own against the update.
        count: fp32 scalar. It and `veto` are summed over the ranks in the collective that sums the squares.

    Returns:
        fp32 [3 + groups], the same on all ranks: the norm before clipping, the sums of `veto` and `count`, and each
        group's norm before clipping, as it was found. The first is nan when it is not finite or there is a veto, and so
        is then every element of the gradient.

    **Source**: DeepSpeed 0.19.8, `get_grad_norm_direct`, `combine_grad_norm_groups` and `unscale_and_clip_grads`.
    **Differs**: a few kernels and one collective where DeepSpeed copies each parameter's gradient to fp64 and scans it
    for inf and nan besides; the arithmetic is the same, operation by operation, so on a CPU no bit differs.
    """
    groups = [list(group) for group in groups]
    # fp64 inside the reduction: a sum of 1e8 squares loses digits in fp32.
    squares = [torch.stack(torch._foreach_norm(group, 2, dtype=torch.float64)).pow(2).sum() for group in groups]
    sums = ranks.sum_over_ranks(torch.stack([*(square.float() for square in squares), veto, count]))
    group_norms = sums[:-2].sqrt()
    norm = torch.linalg.vector_norm(group_norms)
    norm = torch.where((norm < torch.inf) & (sums[-2] == 0), norm, torch.nan)
    clip = torch.clamp((norm + 1e-6) / max_norm, min=1.0) if max_norm else 1 + 0 * norm
    scale = 1.0 / clip
    for group in groups:
        torch._foreach_mul_(group, scale)
    return torch.cat([norm[None], sums[-2:], group_norms])
