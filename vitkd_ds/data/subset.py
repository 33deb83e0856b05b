"""Choose the images of a split by data.classes, data.indices and data.fraction."""

import logging
import math
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.sources.class_list import read_classes

logger = logging.getLogger(__name__)

FRACTION_STREAM = 7
"""Random key of the fixed order of all images from which data.fraction takes the first images of each class."""
UNUSED_LABEL = -1
"""Label of images whose class is not listed in data.classes."""


def keep_classes(
    labels: np.ndarray, classes: tuple[str, ...], file: str, *, path: str, must_have_all: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Renumber labels by the classes listed in `file`; return the new labels (int64 [N]) and these classes.

    Images of other classes get `UNUSED_LABEL`.

    Raises:
        ValueError: `must_have_all` is True, and a listed class is not one of `classes`. The message names `path`.
    """
    kept = read_classes(file)
    known = set(classes)
    unknown = [name for name in kept if must_have_all and name not in known]
    if unknown:
        raise ValueError(
            f"class {unknown[0]!r} in {file!r} (data.classes) is not a class of {path!r} "
            f"({nearest(unknown[0], classes)}). Correct the name."
        )
    position = {name: label for label, name in enumerate(kept)}
    return np.array([position.get(name, UNUSED_LABEL) for name in classes], np.int64)[labels], kept


def choose(data: DataConfig, labels: np.ndarray, *, split: str) -> np.ndarray:
    """Return the numbers of the images that a split uses, at least one, in ascending order: int64.

    Raises:
        ValueError: no image remains, or the file data.indices is not a valid list of image numbers.
    """
    chosen = np.flatnonzero(labels != UNUSED_LABEL)
    if split == "train":
        if data.indices:
            chosen = np.intersect1d(chosen, _read_indices(data.indices, len(labels)))
        if data.fraction < 1:
            chosen = _part_of_each_class(chosen, labels[chosen], data.fraction)
    if not len(chosen):
        raise ValueError(
            f"data.classes={data.classes!r} and data.indices={data.indices!r} select none of the {len(labels)} images "
            f"of data.{split}. Change them."
        )
    return chosen


def use_part(
    data: DataConfig, labels: np.ndarray, classes: tuple[str, ...], *, path: str, split: str
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Apply `keep_classes` and `choose` to a split; return its labels, its classes and the numbers of images to use."""
    if data.classes:
        labels, classes = keep_classes(labels, classes, data.classes, path=path, must_have_all=split == "train")
    return labels, classes, choose(data, labels, split=split)


def part_fingerprint(fingerprint: int, data: DataConfig, chosen: np.ndarray, num_images: int) -> int:
    """Return the fingerprint of the chosen images, given the fingerprint of all images.

    The two are equal if all images are chosen and data.classes is not set.
    """
    if len(chosen) == num_images and not data.classes:
        return fingerprint
    names = "\n".join(read_classes(data.classes)) if data.classes else ""
    return zlib.crc32(chosen.tobytes() + names.encode(), fingerprint)


def _part_of_each_class(chosen: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the numbers of a fraction of each class's images: the first ones in a fixed random order."""
    order = keyed_rng(FRACTION_STREAM).permutation(len(chosen))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)
    # Use the decimal as written: in binary floating point, 0.07 of 600 exceeds 42 and would round up to 43.
    exact = Fraction(str(fraction))
    used = [math.ceil(exact * count) for count in counts.tolist()]
    return np.sort(chosen[order[place < np.repeat(used, counts)]])


def _read_indices(file: str, num_images: int) -> np.ndarray:
    try:
        words = Path(file).read_text(encoding="utf-8-sig").split()
        indices = np.array([int(word) for word in words], np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"data.indices ({file!r}) is not a readable file with a number per line: {error}") from error
    wrong = indices[(indices < 0) | (indices >= num_images)]
    if len(wrong):
        raise ValueError(f"data.indices must be numbers from 0 to {num_images - 1}, got {wrong[0]} in {file!r}")
    chosen, counts = np.unique(indices, return_counts=True)
    twice = chosen[counts > 1]
    if len(twice):
        logger.warning(
            "%d image numbers occur more than once in %r and count once; the first is %d", len(twice), file, twice[0]
        )
    return chosen
