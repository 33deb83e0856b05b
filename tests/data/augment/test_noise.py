"""Random erasing: the distribution, key and position of the noise."""

import numpy as np

from tests.data.augment.samples import augmented, pixels, plan_of, samples
from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.noise import NUM_QUANTILES, noise_levels
from vitkd_ds.data.colours import IMAGENET
from vitkd_ds.data.draws import image_keys

KEYS = image_keys(np.arange(12), np.zeros(12, np.int64), seed=5, epoch=0)


def test_the_levels_are_normal_with_the_models_mean_and_std():
    normal = np.random.default_rng(0).standard_normal(1_000_000)
    for statistics in (IMAGENET, ((0.5, 0.5, 0.5), (0.5, 0.4, 0.1))):
        levels = noise_levels(statistics)
        assert levels.shape == (3, NUM_QUANTILES) and levels.dtype == np.uint8
        for mean, std, mine in zip(*statistics, levels, strict=True):
            theirs = np.clip(np.rint(255 * (mean + std * normal)), 0, 255)
            for quantile in (0.5, 1, 10, 31, 50, 77, 99, 99.9):
                assert abs(np.percentile(mine, quantile) - np.percentile(theirs, quantile)) <= 1
            assert abs(mine.mean() - theirs.mean()) < 0.3 and abs(mine.std() - theirs.std()) < 0.3


def test_noise_replaces_exactly_the_rectangles():
    images = np.zeros((12, 120, 90, 3), np.uint8)
    erased = augmented(images, plan_of(images, samples(12), random_erasing=0.8))
    boxes = drawn.draw_rectangles(KEYS, probability=0.8, height=120, width=90)
    assert 5 < np.count_nonzero(boxes[:, 2]) < 12
    is_inside = np.zeros((12, 120, 90), bool)
    for member, (top, left, height, width) in enumerate(boxes.tolist()):
        is_inside[member, top : top + height, left : left + width] = True
    assert not erased[~is_inside].any()
    inside = erased[is_inside].astype(float)
    mean, std = (255 * np.array(values) for values in IMAGENET)
    assert abs(inside.mean(0) - mean).max() < 1.5 and abs(inside.std(0) - std).max() < 3
    assert inside.min() == 0 and inside.max() == 255
    centred = inside - inside.mean(0)
    for shift in (1, 2, 3, 4):  # neither between neighbours nor between the channels of a pixel
        assert abs(np.corrcoef(centred.ravel()[shift:], centred.ravel()[:-shift])[0, 1]) < 0.01


def test_each_byte_of_noise_is_a_function_of_key_and_position():
    """The 16 bits of a byte, by Python's own whole numbers."""
    images, mask = pixels(copies=3), 2**64 - 1
    erased = augmented(images, plan_of(images, samples(12), random_erasing=1.0))
    levels = noise_levels(IMAGENET)
    boxes = drawn.draw_rectangles(KEYS, probability=1.0, height=33, width=47)
    for member, (top, left, height, width) in enumerate(boxes.tolist()):
        for y, x, colour in ((top, left, 0), (top + height - 1, left + width - 1, 2), (top, left + width // 2, 1)):
            byte = (y * 47 + x) * 3 + colour
            bits = (int(KEYS[member]) + ((1 << 20) + byte // 4) * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & mask
            bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
            bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
            bits ^= bits >> 31
            assert erased[member, y, x, colour] == levels[colour, bits >> 16 * (byte % 4) & 0xFFFF]
