"""What all losses share: differences, squares, softmaxes and sums are computed in at least fp32.

In bf16, a sum of squares over 196 x 1024 values keeps two or three digits. Projections and convolutions accumulate in
fp32 inside their kernels, so they stay in the dtype that they are given.
"""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert `x` to fp32 if it is narrower; fp32 and fp64 stay."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def standardized(logits_BK: Tensor) -> Tensor:
    """Give the logits of each image mean 0 and (unbiased) standard deviation 1."""
    centred_BK = logits_BK - logits_BK.mean(dim=1, keepdim=True)
    variance_B1 = centred_BK.square().sum(dim=1, keepdim=True) / (logits_BK.shape[1] - 1)
    # The root of 0 has no gradient, hence that of what is above 0: equal logits stay 0.
    return centred_BK / (variance_B1.clamp_min(1e-30).sqrt() + 1e-7)


def check_same_logits(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> None:
    """Raise ValueError unless the logits of both are [B, K] of one shape."""
    student, teacher = tuple(student_logits_BK.shape), tuple(teacher_logits_BK.shape)
    if len(student) != 2 or student != teacher:
        raise ValueError(
            f"student and teacher logits must both be [images, classes], found {student} and {teacher}: "
            "build both models with the same number of classes"
        )
