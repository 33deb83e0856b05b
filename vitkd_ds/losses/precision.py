"""The precision rule of every loss: differences, squares, softmaxes and sums in at least fp32.

A sum of squares over 196 x 1024 bf16 values keeps two or three digits; projections and convolutions, which accumulate
in fp32 inside the kernel, stay in the dtype that they are given.
"""

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32 if it is narrower, unchanged if it is fp32 or fp64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_same_logits(student_logits_BK: Tensor, teacher_logits_BK: Tensor) -> None:
    """Raise ValueError unless both are [B, K] of one shape."""
    student, teacher = tuple(student_logits_BK.shape), tuple(teacher_logits_BK.shape)
    if len(student) != 2 or student != teacher:
        raise ValueError(
            f"student and teacher logits must both be [images, classes], found {student} and {teacher}: "
            "build both models with the same number of classes"
        )
