"""Training images of several sizes in one run, from both backends."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.data.test_loader import another, config, epoch_of, same
from vitkd_ds.config.image_sizes import phases_of
from vitkd_ds.config.run import AugmentConfig

PHASES = phases_of("16:1,24:2,32:2", 5)
SIZES = [16, 24, 24, 32, 32]
AUGMENT = AugmentConfig(rand_augment="rand-m8-n2-p1-inc1", random_erasing=0.5)


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_each_epoch_has_the_pixels_of_a_loader_with_its_size_and_magnitude(beton, backend):
    data = replace(config(beton), image_size=32, backend=backend)
    loader = another(data, augment=AUGMENT, phases=PHASES)
    for epoch, (size, magnitude) in enumerate(zip(SIZES, (0, 2, 4, 6, 8))):
        alone = replace(AUGMENT, rand_augment=f"rand-m{magnitude}-n2-p1-inc1")
        plain = another(replace(data, image_size=size), augment=alone)
        images, labels = epoch_of(loader, epoch)
        assert images[0].shape[2:] == (size, size)
        assert images[0].is_contiguous(memory_format=torch.channels_last)
        assert same((images, labels), epoch_of(plain, epoch))
        assert same([part[4:] for part in (images, labels)], epoch_of(loader, epoch, start_step=2))
    assert not same(images, epoch_of(another(data, augment=alone), epoch - 1)[0])


def test_epochs_of_two_sizes_may_be_open_at_once(beton):
    loader = another(replace(config(beton), image_size=32), phases=PHASES)
    pairs = list(zip(loader.epoch(0), loader.epoch(4), strict=True))
    for place, epoch in enumerate((0, 4)):
        assert same([pair[place][0] for pair in pairs], epoch_of(loader, epoch)[0])


def test_a_substitute_for_a_bad_image_has_the_size_of_its_epoch(beton):
    loader = another(replace(config(beton), image_size=32), phases=PHASES)
    samples = loader._train_order(1)[:3]
    images_BHWC, status_B = loader._images.decode(samples)
    assert images_BHWC.shape == (3, 24, 24, 3) and not status_B.any()
    assert np.array_equal(images_BHWC[:2], epoch_of(loader, 1)[0][0].permute(0, 2, 3, 1))


def test_validation_images_always_have_the_full_size(beton):
    loader = another(replace(config(beton), image_size=32), split="val", phases=PHASES)
    assert epoch_of(loader)[0][0].shape[2:] == (32, 32)


def test_a_randaugment_that_is_strongest_at_low_magnitudes_is_rejected(beton):
    with pytest.raises(ValueError, match="augment.rand_augment must have the part inc1 with data.image_sizes"):
        another(config(beton), augment=AugmentConfig(rand_augment="rand-m9-mstd0.5"), phases=PHASES)
