"""Gradient norm, finite check and clipping of the sharded gradient, in one collective."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vitkd_ds.engine import ranks


@torch.no_grad()
def clip_gradients(groups: Iterable[Sequence[Tensor]], max_norm: float, *, veto: Tensor, count: Tensor) -> Tensor:
    """Clip the gradient to `max_norm`, in place. Collective; does not wait for the device.

    norm = sqrt(sum over ranks, groups and elements of g^2), then g *= 1 / max(1, (norm + 1e-6) / max_norm).

    Args:
        groups: this rank's partition of the gradient in each parameter group, fp32; partitions do not overlap.
        max_norm: largest norm; 0 disables clipping.
        veto: fp32 scalar; positive if this rank rejects the update for a reason other than a non-finite norm.
        count: fp32 scalar. Like `veto`, it is summed over the ranks in the collective that sums the squares.

    Returns:
        fp32 [3 + groups], equal on all ranks: norm before clipping, sum of `veto`, sum of `count`, and each group's
        norm before clipping, which may be inf or nan. If the total norm is not finite or any rank vetoes, the first
        element and the whole gradient become nan.

    **Source**: DeepSpeed 0.19.8, `get_grad_norm_direct`, `combine_grad_norm_groups` and `unscale_and_clip_grads`.
    **Differs**: this function uses a few kernels and one collective. DeepSpeed copies the gradient of each parameter to
    fp64, and also scans it for inf and nan. The arithmetic is the same, operation by operation, so CPU results are
    bit-identical.
    """
    groups = [list(group) for group in groups]
    # Reduce in fp64: an fp32 sum of 1e8 squares loses digits.
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
