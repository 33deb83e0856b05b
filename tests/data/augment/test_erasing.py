"""Random erasing's noise: the same bits as the keyed draws in numpy, its statistics, and where it goes."""

import numpy as np
import torch

from tests.data.augment.samples import micro_batch
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.augment.erasing import MEAN, STD, hash_draws, normal_noise
from vitkd_ds.data.draws import image_keys, mix64, uniform

KEYS = image_keys(np.arange(12), np.zeros(12, np.int64), seed=3, epoch=0)
SIGNED = torch.from_numpy(KEYS.view(np.int64))


def test_the_devices_hash_is_that_of_the_keyed_draws_bit_for_bit():
    draws = np.concatenate([np.arange(50), drawn.NOISE_DRAWS + np.arange(0, 1 << 22, 99991)])
    for draw in draws.tolist():
        ours = hash_draws(SIGNED, torch.full((len(KEYS),), draw))
        theirs = mix64(KEYS + np.array([draw * 0xD1B54A32D192ED03 % 2**64], np.uint64))
        np.testing.assert_array_equal(ours.numpy().view(np.uint64), theirs)
        np.testing.assert_array_equal((ours.numpy().view(np.uint64) >> np.uint64(11)) * 2.0**-53, uniform(KEYS, draw))


def test_the_noise_is_standard_normal_and_independent_between_bytes_and_images():
    draws = drawn.NOISE_DRAWS + torch.arange(60_000)
    noise = torch.stack([normal_noise(SIGNED[i].expand(len(draws)), draws) for i in range(2)]).double()
    assert noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01
    assert (noise**3).mean().abs() < 0.03 and ((noise**4).mean() - 3).abs() < 0.1
    assert noise.abs().max() < 6 and torch.isfinite(noise).all()
    first, second = noise
    for other, mine in ((second, first), (first[1:], first[:-1]), (first[3:], first[:-3])):
        assert torch.corrcoef(torch.stack([mine, other]))[0, 1].abs() < 0.015


def test_exactly_the_rectangles_are_replaced_by_noise_of_imagenets_mean_and_std():
    images = torch.zeros(12, 3, 120, 90, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    erased = Augmenter(AugmentConfig(random_erasing=0.8))(images, KEYS)
    boxes = drawn.draw_rectangles(KEYS, probability=0.8, height=120, width=90)
    assert 5 < len(boxes) < 12
    expected = torch.zeros(12, 120, 90, dtype=torch.bool)
    for member, top, left, height, width in boxes.tolist():
        expected[member, top : top + height, left : left + width] = True
    is_noise = erased != 0
    assert not is_noise[~expected[:, None].expand_as(erased)].any()
    assert is_noise.float().sum() > 0.97 * 3 * expected.sum()
    inside = erased.permute(1, 0, 2, 3)[:, expected].double()
    assert (inside.mean(1) - torch.tensor(MEAN)).abs().max() < 1.5
    assert (inside.std(1) - torch.tensor(STD)).abs().max() < 3
    assert inside.min() == 0 and inside.max() == 255


def test_each_byte_of_noise_is_a_function_of_key_and_place():
    images = micro_batch(33, 47, copies=3)
    erased = Augmenter(AugmentConfig(random_erasing=1.0))(images, KEYS)
    boxes = drawn.draw_rectangles(KEYS, probability=1.0, height=33, width=47)
    for member, top, left, height, width in boxes.tolist():
        for y, x, c in ((top, left, 0), (top + height - 1, left + width - 1, 2), (top, left + width // 2, 1)):
            draw = drawn.NOISE_DRAWS + torch.tensor([(y * 47 + x) * 3 + c])
            level = MEAN[c] + STD[c] * float(normal_noise(SIGNED[member : member + 1], draw))
            assert abs(int(erased[member, c, y, x]) - min(max(level, 0), 255)) <= 0.51
