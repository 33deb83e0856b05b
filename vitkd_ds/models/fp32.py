"""Precision of fp32 matrix products on a GPU. Unlike `vitkd_ds.train.evaluate`, this module imports no DeepSpeed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fp32_products(allow_tf32: bool) -> Iterator[None]:
    """In this context, fp32 matrix products and convolutions on a GPU use TF32 if `allow_tf32`, otherwise full fp32."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allow_tf32
        yield
    finally:
        for backend, value in zip(backends, before):
            backend.allow_tf32 = value
