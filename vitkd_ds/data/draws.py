"""Random numbers that depend only on (seed, epoch, image, repeat).

Crops, flips and augmentation must not depend on the thread, rank or restart that decodes an image. So there is no
stateful generator: each image has a 64-bit key, and its n-th number is a hash of key and n. Numbers may be drawn in any
order, for any selection of images.
"""

import math

import numpy as np

IMAGE_STREAM = 2
"""Last element of the epoch's random key, which separates these draws from other uses of (seed, epoch)."""
CROP_DRAWS, AUGMENT_DRAWS = 0, 1 << 10
"""First draw number of an image's crops (with flip and filter) and of its augmentations."""


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a random generator that depends only on the whole key.

    SeedSequence hashes the key, so nearby keys are independent. With ``seed + epoch``, (8, 0) would equal (7, 1).
    (1,) and (1, 0) also differ. Philox's stream is the same in all NumPy versions.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *key])))


def mix64(x_N: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers one to one with splitmix64; overflow is intended."""
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def image_keys(indices_N: np.ndarray, repeats_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Return the key of each image in an epoch: uint64 [N].

    Args:
        indices_N: numbers of the images in their file.
        repeats_N: how often the epoch has shown each image before (repeated augmentation, class-balanced order), modulo
            2**16; beyond that, draws repeat.
    """
    epoch_key = keyed_rng(seed, epoch, IMAGE_STREAM).integers(2**64, size=1, dtype=np.uint64)
    shown_N = indices_N.astype(np.uint64) | (repeats_N.astype(np.uint64) << np.uint64(48))
    return mix64(mix64(shown_N) ^ epoch_key)


def sample_keys(samples: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the keys of samples (`vitkd_ds.data.order.SAMPLE_DTYPE` [N]) of one epoch: uint64 [N]."""
    epoch = int(samples["epoch"][0]) if len(samples) else 0
    return image_keys(samples["index"], samples["repeat"], seed=seed, epoch=epoch)


def draw_bits(keys_N: np.ndarray, draws_N: np.ndarray) -> np.ndarray:
    """Return the 64 random bits with number draws_N of each key; arrays are broadcast, and overflow is intended."""
    return mix64(keys_N + draws_N.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))


def uniform(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Return the `draw`-th number of each key, uniform in [0, 1): float64 [N]."""
    return (draw_bits(keys_N, np.array([draw])) >> np.uint64(11)) * 2.0**-53


def normal(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Return a standard normal number for each key, made from its numbers `draw` and `draw` + 1: float64 [N]."""
    radius_N = np.sqrt(-2 * np.log1p(-uniform(keys_N, draw)))
    return radius_N * np.cos(2 * math.pi * uniform(keys_N, draw + 1))
