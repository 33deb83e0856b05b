"""Random numbers that depend on (seed, epoch, image, repeat) and on nothing else.

Crops, flips and augmentation of an image must not depend on the thread, rank or restart that decodes it, so there is no
generator with a state: each image has a 64-bit key, and its n-th number is a hash of key and n. Numbers may be drawn
in any order, for any selection of images.
"""

import math

import numpy as np

IMAGE_STREAM = 2
"""Last part of the epoch's key, so that no other use of (seed, epoch) draws the same numbers."""
CROP_DRAWS, AUGMENT_DRAWS = 0, 1 << 10
"""First draw number of the crops (with flip and filter) and of the augmentations of an image."""


def keyed_rng(*key: int) -> np.random.Generator:
    """Make a random generator that depends on the whole key and on nothing else.

    The key is hashed by SeedSequence, so neighbouring keys are as independent as distant ones: (8, 0) is not (7, 1), as
    it would be with ``seed + epoch``; nor is (1,) the same as (1, 0). Philox's stream is fixed across numpy versions.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *key])))


def mix64(x_N: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers one to one, by splitmix64; overflow is meant."""
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def image_keys(indices_N: np.ndarray, repeats_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Make the key of each image in an epoch, uint64 [N], from its number in its file and from how often this epoch
    showed it before (repeated augmentation, class-balanced order), modulo 2**16: after so many, draws come again."""
    epoch_key = keyed_rng(seed, epoch, IMAGE_STREAM).integers(2**64, size=1, dtype=np.uint64)
    shown_N = indices_N.astype(np.uint64) | (repeats_N.astype(np.uint64) << np.uint64(48))
    return mix64(mix64(shown_N) ^ epoch_key)


def sample_keys(samples: np.ndarray, *, seed: int) -> np.ndarray:
    """Make the keys of samples of one epoch (`vitkd_ds.data.order.SAMPLE_DTYPE` [N]): uint64 [N]."""
    epoch = int(samples["epoch"][0]) if len(samples) else 0
    return image_keys(samples["index"], samples["repeat"], seed=seed, epoch=epoch)


def draw_bits(keys_N: np.ndarray, draws_N: np.ndarray) -> np.ndarray:
    """Take the 64 bits that are the draws_N-th number of each key, which may be one for all; overflow is meant."""
    return mix64(keys_N + draws_N.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))


def uniform(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Take the `draw`-th number of each key, uniform in [0, 1): float64 [N]."""
    return (draw_bits(keys_N, np.array([draw])) >> np.uint64(11)) * 2.0**-53


def normal(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Make a standard normal number of each key from its numbers `draw` and `draw` + 1: float64 [N]."""
    radius_N = np.sqrt(-2 * np.log1p(-uniform(keys_N, draw)))
    return radius_N * np.cos(2 * math.pi * uniform(keys_N, draw + 1))
