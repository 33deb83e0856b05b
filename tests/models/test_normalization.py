"""Normalisation against the slow formula, in every dtype and memory format."""

import pytest
import torch

from vitkd_ds.models.normalization import Normalization

IMAGENET = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("source_dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 3, 16, 16), (1, 3, 5, 7), (0, 3, 4, 4)])
def test_normalisation_follows_the_slow_formula_and_is_rounded_once(source_dtype, dtype, shape):
    images_BCHW = torch.randint(0, 256, shape).to(source_dtype)
    found = IMAGENET.apply(images_BCHW, dtype)
    channels = [(images_BCHW[:, c].double() / 255 - IMAGENET.mean[c]) / IMAGENET.std[c] for c in range(3)]
    expected = torch.stack(channels, dim=1)
    assert found.dtype == dtype and found.shape == images_BCHW.shape
    # Half a unit in the last of bf16's 8 bits is at most 2**-8 of the value; a mean rounded to bf16 would exceed that.
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=1e-6)


def test_normalisation_keeps_the_memory_format_and_the_input():
    images_BCHW = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    before = images_BCHW.clone()
    last = IMAGENET.apply(images_BCHW.to(memory_format=torch.channels_last), torch.bfloat16)
    first = IMAGENET.apply(images_BCHW, torch.bfloat16)
    assert last.is_contiguous(memory_format=torch.channels_last) and first.is_contiguous()
    assert torch.equal(last, first) and torch.equal(images_BCHW, before)


def test_normalisation_first_used_in_inference_mode_still_works_in_training():
    normalization = Normalization(mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))
    with torch.inference_mode():
        normalization.apply(torch.zeros(1, 3, 2, 2), torch.float32)
    images_BCHW = torch.ones(1, 3, 2, 2, requires_grad=True)
    normalization.apply(images_BCHW, torch.float32).sum().backward()
    assert images_BCHW.grad[0, 0, 0, 0] == pytest.approx(1 / (255 * 0.9))


def test_normalisation_compiles_whole():
    images_BCHW = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    compiled = torch.compile(lambda images: IMAGENET.apply(images, torch.bfloat16), backend="eager", fullgraph=True)
    assert torch.equal(compiled(images_BCHW), IMAGENET.apply(images_BCHW, torch.bfloat16))
