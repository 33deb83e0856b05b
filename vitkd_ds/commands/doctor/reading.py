"""Two ways to read a sample of one rank's images, each with its speed.

The bytes alone, with their CRC32, past the page cache: this is the disk. And through the loader that trains: disk, page
cache and decoder.
"""

import os
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.beton.verify import are_intact
from vitkd_ds.data.loader import Loader
from vitkd_ds.engine import processes

SAMPLE = 256
"""Images per rank."""
MOST_S = 10.0
"""Most time for the loader's sample; a slow disk then gives fewer images."""
PAGE = 4096


@dataclass(frozen=True)
class BytesRead:
    """What reading the bytes of a sample showed on one rank."""

    num_images: int
    images_per_s: float
    mib_per_s: float
    bad: tuple[str, ...]
    """Images with other bytes than they were packed with."""


def read_bytes(path: Path, *, seed: int) -> BytesRead:
    """Read the bytes of a random sample of a .beton from the disk, and compare their CRC32."""
    info, images, labels = read_beton(path)
    chosen = np.random.default_rng(seed).permutation(len(images))[:SAMPLE]
    num_threads = processes.num_cpus()
    forget(path, images[chosen])
    start = time.perf_counter()
    is_good = are_intact(path, images[chosen], num_threads=num_threads)
    seconds = time.perf_counter() - start
    bad = tuple(f"image {i} (class {info.classes[labels[i]]!r})" for i in np.sort(chosen[~is_good]))
    return BytesRead(len(chosen), len(chosen) / seconds, images["size"][chosen].sum() / 2**20 / seconds, bad)


def forget(path: Path, images: np.ndarray) -> None:
    """Drop the pages on which these images lie from the page cache, and no others: another job may live off them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, size in zip(images["offset"].tolist(), images["size"].tolist()):
            first = offset // PAGE * PAGE
            os.posix_fadvise(descriptor, first, -(-(offset + size) // PAGE) * PAGE - first, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def read_images(loader: Loader) -> tuple[int, float, int]:
    """Read, decode and augment the first images of an epoch: how many, how many per second, and how many were bad."""
    count, start = 0, time.perf_counter()
    with closing(loader.epoch(0)) as micro_batches:
        for images_BCHW, _ in micro_batches:
            count += len(images_BCHW)
            if count >= SAMPLE or time.perf_counter() - start > MOST_S:
                break
    return count, count / (time.perf_counter() - start), loader.num_skipped
