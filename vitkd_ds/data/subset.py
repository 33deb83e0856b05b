"""Which images of a split are used: data.classes, data.indices and data.fraction, in this order."""

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
"""Key of the one order of a class's images of which data.fraction takes the beginning."""
UNUSED_LABEL = -1
"""Label of images of other classes than data.classes."""


def keep_classes(
    labels: np.ndarray, classes: tuple[str, ...], file: str, *, path: str, must_have_all: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and classes of images of which only the classes named in `file` are used: int64 [N], `UNUSED_LABEL` for
    the others. Raises ValueError if the images at `path` lack one that they must have."""
    kept = read_classes(file)
    known = set(classes)
    unknown = [name for name in kept if must_have_all and name not in known]
    if unknown:
        raise ValueError(
            f"data.classes must name classes of {path!r}, found {unknown[0]!r} in {file!r} "
            f"({nearest(unknown[0], classes)}): correct it"
        )
    position = {name: label for label, name in enumerate(kept)}
    return np.array([position.get(name, UNUSED_LABEL) for name in classes], np.int64)[labels], kept


def choose(data: DataConfig, labels: np.ndarray, *, split: str) -> np.ndarray:
    """Numbers of the images that a split uses, ascending: int64, at least one. Raises ValueError if none is left, or
    data.indices is no list of images."""
    chosen = np.flatnonzero(labels != UNUSED_LABEL)
    if split == "train":
        if data.indices:
            chosen = np.intersect1d(chosen, _read_indices(data.indices, len(labels)))
        if data.fraction < 1:
            chosen = _part_of_each_class(chosen, labels[chosen], data.fraction)
    if not len(chosen):
        raise ValueError(
            f"at least one of the {len(labels)} images of data.{split} must be used, found none in "
            f"data.classes={data.classes!r} and data.indices={data.indices!r}: give others"
        )
    return chosen


def use_part(
    data: DataConfig, labels: np.ndarray, classes: tuple[str, ...], *, path: str, split: str
) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """Labels, classes and numbers of the images of a split that are used, by `keep_classes` and `choose`."""
    if data.classes:
        labels, classes = keep_classes(labels, classes, data.classes, path=path, must_have_all=split == "train")
    return labels, classes, choose(data, labels, split=split)


def part_fingerprint(fingerprint: int, data: DataConfig, chosen: np.ndarray, num_images: int) -> int:
    """The fingerprint of the images that are used, by that of all: the same where all are, under their own labels."""
    if len(chosen) == num_images and not data.classes:
        return fingerprint
    names = "\n".join(read_classes(data.classes)) if data.classes else ""
    return zlib.crc32(chosen.tobytes() + names.encode(), fingerprint)


def _part_of_each_class(chosen: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """The beginning of each class in one random order of all images."""
    order = keyed_rng(FRACTION_STREAM).permutation(len(chosen))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, counts)
    # The decimal as it was written: in binary, 0.07 of 600 is a little more than 42, and would round up to 43.
    exact = Fraction(str(fraction))
    used = [math.ceil(exact * count) for count in counts.tolist()]
    return np.sort(chosen[order[place < np.repeat(used, counts)]])


def _read_indices(file: str, num_images: int) -> np.ndarray:
    try:
        words = Path(file).read_text(encoding="utf-8-sig").split()
        indices = np.array([int(word) for word in words], np.int64)
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"data.indices must be a file with a number per line, found {error}: check it") from error
    wrong = indices[(indices < 0) | (indices >= num_images)]
    if len(wrong):
        raise ValueError(f"data.indices must hold numbers below {num_images}, found {wrong[0]} in {file!r}: correct it")
    chosen, counts = np.unique(indices, return_counts=True)
    twice = chosen[counts > 1]
    if len(twice):
        logger.warning(
            "%d numbers stand twice or more in %r and count once, the first is %d", len(twice), file, twice[0]
        )
    return chosen
