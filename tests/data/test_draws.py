"""Keyed random draws: uniform and normal; independent across images, repeats, epochs, seeds and draw numbers."""

import numpy as np

from vitkd_ds.data.draws import image_keys, keyed_rng, normal, uniform

INDICES = np.arange(20000)


def keys(*, seed=0, epoch=0, repeat=0):
    return image_keys(INDICES, np.full(len(INDICES), repeat), seed=seed, epoch=epoch)


def test_keys_all_differ_and_every_part_of_a_key_affects_the_random_draws():
    every = [keys(seed=s, epoch=e, repeat=r) for s in (7, 8) for e in (0, 1) for r in (0, 1)]
    assert len(set(np.concatenate(every).tolist())) == 8 * len(INDICES)
    draws = [keyed_rng(*key).random() for key in [(8, 0), (7, 1), (8,), (8, 0, 0), (0, 8)]]
    assert len(set(draws)) == 5 and keyed_rng(8, 0).random() == draws[0]


def test_draws_are_uniform_and_normal():
    values, normals = uniform(keys(), 5), normal(keys(), 6)
    assert 0 <= values.min() and values.max() < 1
    counts = np.bincount((values * 20).astype(int), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-square with 19 degrees of freedom: 50 has p = 1e-4
    assert abs(normals.mean()) < 0.03 and abs(normals.std() - 1) < 0.02
    assert abs((np.abs(normals) < 1.96).mean() - 0.95) < 0.01


def test_draws_for_different_numbers_images_and_epochs_are_uncorrelated():
    base = uniform(keys(), 0)
    others = [uniform(keys(), 1), uniform(keys(), 1 << 10), uniform(keys(epoch=1), 0), uniform(keys(seed=1), 0)]
    for other in [*others, uniform(keys(repeat=1), 0), np.roll(base, 1)]:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.03
    np.testing.assert_array_equal(uniform(keys()[17:18], 3), uniform(keys(), 3)[17:18])
