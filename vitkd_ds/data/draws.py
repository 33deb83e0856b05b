"""Random numbers that depend only on (seed, epoch, image, repeat).

Crops, flips and augmentation must not depend on the thread or rank that decodes an image, or on restarts. Therefore,
there is no random generator with a state. Each image has a 64-bit key, and its n-th random number is a hash of the key
and n. The numbers can be computed in any order and for any selection of images.
"""

import math

import numpy as np

IMAGE_STREAM = 2
"""Last number of the key (seed, epoch, IMAGE_STREAM); other uses of (seed, epoch) have another last number."""
CROP_DRAWS, AUGMENT_DRAWS = 0, 1 << 10
"""Index n of an image's first random number for crop, flip and filter, and of its first one for augmentation."""


def keyed_rng(*key: int) -> np.random.Generator:
    """Return a random generator that depends on all numbers of `key` and on nothing else.

    SeedSequence hashes the key, so that similar keys give independent generators. With the sum ``seed + epoch`` as the
    key, seed 8 in epoch 0 would give the same numbers as seed 7 in epoch 1. Keys of different lengths, such as (1,) and
    (1, 0), also give different generators. Philox generates the same numbers in all versions of NumPy.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(key), *key])))


def mix64(x_N: np.ndarray) -> np.ndarray:
    """Hash uint64 numbers with splitmix64; different numbers get different hashes. Overflow is intended."""
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def image_keys(indices_N: np.ndarray, repeats_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Return the random key of each image in an epoch: uint64 [N].

    Args:
        indices_N: numbers of the images in their file.
        repeats_N: number of times that the epoch has shown each image before. It can be above 0 with repeated
            augmentation or a class-balanced order. From 2**16 on, the keys repeat.
    """
    epoch_key = keyed_rng(seed, epoch, IMAGE_STREAM).integers(2**64, size=1, dtype=np.uint64)
    shown_N = indices_N.astype(np.uint64) | (repeats_N.astype(np.uint64) << np.uint64(48))
    return mix64(mix64(shown_N) ^ epoch_key)


def sample_keys(samples: np.ndarray, *, seed: int) -> np.ndarray:
    """Return one random key per sample: uint64 [N]. All random numbers of a sample are computed from it.

    Args:
        samples: `vitkd_ds.data.order.SAMPLE_DTYPE` [N], all of the same epoch.
    """
    return image_keys(samples["index"], samples["repeat"], seed=seed, epoch=epoch_of(samples))


def epoch_of(samples: np.ndarray) -> int:
    """Return the epoch of samples, which is the same for all of them; 0 if there are none."""
    return int(samples["epoch"][0]) if len(samples) else 0


def draw_bits(keys_N: np.ndarray, draws_N: np.ndarray) -> np.ndarray:
    """Return 64 random bits for each key: its random number with index draws_N.

    The two arrays are broadcast. Overflow is intended.
    """
    return mix64(keys_N + draws_N.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03))


def uniform(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Return the random number with index `draw` of each key, uniform in [0, 1): float64 [N]."""
    return (draw_bits(keys_N, np.array([draw])) >> np.uint64(11)) * 2.0**-53


def normal(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """Return one standard normal number per key, float64 [N].

    It is computed from the key's uniform numbers with the indices `draw` and `draw` + 1.
    """
    radius_N = np.sqrt(-2 * np.log1p(-uniform(keys_N, draw)))
    return radius_N * np.cos(2 * math.pi * uniform(keys_N, draw + 1))
