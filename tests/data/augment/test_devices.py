"""The augmentation on a GPU, eager and compiled, against the CPU: the same keys give the same pixels."""

import pytest
import torch

from tests.data.augment.samples import levels_apart, micro_batch
from tests.data.augment.test_augmenter import EVERYTHING, RECIPES, keys
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.augment.policy import OPS

CONFIGS = RECIPES | {"erasing": AugmentConfig(random_erasing=0.5), "everything": EVERYTHING}
COUNT = 512  # images, so that each of the operations has many


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT COMPARED WITH THE CPU: there is no CUDA device")
@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_gives_the_pixels_of_the_cpu(name, compile):
    images = micro_batch(33, 47, copies=COUNT // 4)
    expected = Augmenter(CONFIGS[name])(images, keys(COUNT))
    assert not torch.equal(expected, images)
    found = Augmenter(CONFIGS[name], compile=compile)(images.cuda(), keys(COUNT))
    assert found.is_contiguous(memory_format=torch.channels_last)
    if name == "erasing":  # whole numbers alone
        assert torch.equal(found.cpu(), expected)
    # Sums in another order, or fused multiplications, may round a level up or down, which Equalize, Posterize and
    # Solarize make many of; no image may be another one.
    apart = (found.cpu().int() - expected.int()).abs()
    assert (apart.flatten(1).amax(1) <= 1).float().mean() >= 0.9
    assert levels_apart(found.cpu(), expected)[1] < 5e-3


def test_the_images_of_the_comparison_meet_every_operation():
    layers = Augmenter(EVERYTHING).layers(keys(COUNT))
    assert min(sum(len(layer.members(op)) for layer in layers) for op in OPS) >= 10
