"""How exactly a GPU multiplies numbers of fp32; without DeepSpeed, which `vitkd_ds.train.evaluate` imports."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def fp32_products(allow_tf32: bool) -> Iterator[None]:
    """For a while, compute a GPU's products and convolutions of fp32 in TF32, or in full fp32."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allow_tf32
        yield
    finally:
        for backend, value in zip(backends, before):
            backend.allow_tf32 = value
