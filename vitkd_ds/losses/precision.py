"""Numerics of all losses: differences, squares, softmaxes and sums are in at least fp32.

In bf16, a sum of squares over 196 x 1024 values is accurate only to two or three digits. Projections and convolutions
keep their input's dtype, because their kernels accumulate in fp32.
"""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Convert bf16 and fp16 to fp32; return fp32 and fp64 unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def standardized(logits_BK: Tensor) -> Tensor:
    """Standardise each image's logits to mean 0 and (unbiased) standard deviation 1."""
    centred_BK = logits_BK - logits_BK.mean(dim=1, keepdim=True)
    variance_B1 = centred_BK.square().sum(dim=1, keepdim=True) / (logits_BK.shape[1] - 1)
    # sqrt has an infinite gradient at 0, so the variance is clamped; equal logits still give 0.
    return centred_BK / (variance_B1.clamp_min(1e-30).sqrt() + 1e-7)


def check_same_logits(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> None:
    """Raise ValueError unless the student's and the teacher's logits have the same shape [B, K]."""
    student, teacher = tuple(student_logits_BK.shape), tuple(teacher_logits_BK.shape)
    if len(student) != 2 or student != teacher:
        raise ValueError(
            f"student and teacher logits must both be [images, classes], got {student} and {teacher}. "
            "Build both models with the same number of classes."
        )
