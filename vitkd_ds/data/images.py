"""A split's images, opened: from the run's settings to one of the two backends, with the checks that opening allows."""

import logging
import os
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitkd_ds.config.overrides import nearest
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.beton.format import SUFFIX, beton_fingerprint, read_beton
from vitkd_ds.data.classes import check_is_not_one
from vitkd_ds.data.crops import CentreCrops, TrainCrops
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources import open_source
from vitkd_ds.data.subset import part_fingerprint, use_part

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
MOST_LISTED = 5
"""Class names in a message."""


class Images(Protocol):
    """An opened file or folder of images, in one of the two backends."""

    path: str
    classes: tuple[str, ...]
    """Names in label order; () where images have no labels, or these are ignored."""
    labels: np.ndarray
    """int64, a label per image; all 0 without classes."""
    chosen: np.ndarray
    """int64, numbers of the images that are used, ascending (`vitkd_ds.data.subset`)."""
    skippable: frozenset[int]
    """Statuses that are an image's own fault, not the disk's or ours."""
    unread: frozenset[int]
    """Statuses that are the disk's fault."""
    fingerprint: int
    """Changes when images have other numbers, labels or places, or others of them are used."""
    content: int
    """Changes with the bytes of the images, as far as the file lists their checksums."""

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode, crop and augment samples in order: images uint8 [micro-batch, size, size, 3] and a status each (0 is
        decoded), valid until the next are asked for."""

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode a few samples at once, as `decoded` does."""

    def is_there(self, index: int) -> bool:
        """Whether the bytes of an image that could not be read are there by the file system, so that another attempt
        may read them: not where the file was cut or removed."""

    def reason(self, index: int, status: int) -> str:
        """Name an image's fault: the end of the sentence "image 7 ..."."""

    def close(self) -> None:
        """Close what is open; a second call does nothing."""

    def pages(self) -> dict[str, Any]:
        """Places of the images, for `vitkd_ds.data.order.quasi_random_order`; the FFCV backend alone has pages."""


def open_images(
    data: DataConfig,
    *,
    split: str,
    seed: int,
    micro_batch_size: int,
    classes: tuple[str, ...] | None = None,
    augmenter: Augmenter | None = None,
) -> Images:
    """Open the images of a split in the backend that `data` names.

    Args:
        augmenter: what follows the crop; None is nothing.
        classes: the training images' in label order. Those of the split may be fewer, or in another order: its labels
            are numbered anew by name. None takes the split's own, whose number must be data.num_classes.

    Raises:
        ValueError: an unfit file or number of classes, or a class that `classes` lacks.
    """
    key = f"data.{split}"
    path = data.train if split == "train" else data.val
    crops = crops_of(data, split=split, seed=seed)
    sizes = {"micro_batch_size": micro_batch_size, "num_workers": data.num_workers or len(os.sched_getaffinity(0))}
    is_quasi_random = split == "train" and data.order == "quasi_random"
    if path == "demo":
        path = demo_beton(split)
    # Each backend is imported only when it is used, so that neither needs the other's packages.
    if data.backend == "torchvision":
        from vitkd_ds.data.torchvision import TorchvisionImages

        if is_quasi_random:
            raise ValueError("data.order=quasi_random needs data.backend=ffcv, found torchvision: change one of them")
        images = TorchvisionImages(path, crops, augmenter, **sizes)
    else:
        from vitkd_ds.data.beton.stream import CropLoader

        images = CropLoader(Path(path), crops, augmenter, is_quasi_random=is_quasi_random, **sizes)
    parts = use_part(data, images.labels, images.classes, path=images.path, split=split)
    images.labels, images.classes, images.chosen = parts
    images.fingerprint = part_fingerprint(images.fingerprint, data, images.chosen, len(images.labels))
    if data.labels == "ignore":
        images.labels = np.zeros_like(images.labels)
        images.classes = ()
    if classes is not None:
        _renumber(images, classes, key, is_known=not data.train)
    _check_num_classes(images, data.num_classes, key)
    return images


def fingerprint_of(data: DataConfig, split: str) -> int:
    """The fingerprint that the images of a split have when they are opened, without opening them."""
    path = data.train if split == "train" else data.val
    path = demo_beton(split) if path == "demo" else Path(path)
    if data.backend == "torchvision" and path.suffix != SUFFIX:
        source = open_source(path)
        fingerprint = zlib.crc32(source.fingerprint().encode())
        labels = source.labels
        classes = source.classes
    else:
        info, images, labels = read_beton(path)
        fingerprint = beton_fingerprint(images, labels)
        classes = info.classes
    *_, chosen = use_part(data, np.asarray(labels, np.int64), classes, path=str(path), split=split)
    return part_fingerprint(fingerprint, data, chosen, len(labels))


def crops_of(data: DataConfig, *, split: str, seed: int) -> TrainCrops | CentreCrops:
    """Choose how the images of a split are cut."""
    if split == "val":
        return CentreCrops(data.image_size, data.val_crop_fraction, data.interpolation)
    scale, ratio, flip = data.crop_scale, data.crop_ratio, data.flip_probability
    return TrainCrops(seed, data.image_size, scale, ratio, flip, data.interpolation)


def _renumber(images: Images, classes: tuple[str, ...], key: str, *, is_known: bool) -> None:
    """Give images the labels that training has for the names of their classes, and its classes. With `is_known` these
    are a student's, and the training images are not at hand."""
    found = images.classes
    if found == classes:
        return
    position = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in found if name not in position]
    owner = "the student" if is_known else "data.train"
    if not found:
        raise ValueError(f"{key} must have labels, as {owner} has classes, found none in {images.path!r}: give others")
    if unknown:
        remedy = "give images of its classes" if is_known else "pack both with the same --classes"
        if not classes:
            remedy = "pack both with --labels none, ignore them with --data.labels=ignore"
        raise ValueError(
            f"{key} must have no classes but those of {owner}, found also {_listed(unknown)} in {images.path!r} "
            f"({nearest(unknown[0], classes)}): {remedy}, or rename the class"
        )
    if len(found) < len(classes):
        logger.info("%s has %d of the %d classes of %s", key, len(found), len(classes), owner)
    else:
        logger.info("%s has the %d classes of %s in another order", key, len(classes), owner)
    images.labels = np.array([position[name] for name in found], np.int64)[images.labels]
    images.classes = classes


def check_classes(expected: tuple[str, ...], found: tuple[str, ...], *, source: str) -> None:
    """Check that `source`, which belongs to a teacher, has the classes of data.train in their order. If not, raise a
    ValueError that lists the names which only one of them has, or else the first difference."""
    if found == expected:
        return
    known, wanted = set(found), set(expected)
    missing, extra = [name for name in expected if name not in known], [name for name in found if name not in wanted]
    differences = [f"{what} {_listed(names)}" for what, names in (("no", missing), ("also", extra)) if names]
    for i, (name, other) in enumerate(zip_longest(expected, found)):
        if name != other and not differences:
            differences = [f"class {i} {other!r} where data.train has {name!r}"]
    raise ValueError(
        f"{source} must have the classes of data.train in the same order, found "
        f"{' and '.join(differences)}: pack the images with --classes in the teacher's order, or take another teacher"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return ", ".join(map(repr, names[:MOST_LISTED])) + more


def _check_num_classes(images: Images, num_classes: int, key: str) -> None:
    found = len(images.classes)
    if found != num_classes:
        check_is_not_one(key, images.path, found)
        remedy = f"set --data.num_classes={found}, or give other images"
        if not num_classes:
            remedy = f"set --data.num_classes={found}, or train without them with --data.labels=ignore"
        if key == "data.val":
            remedy = "give images of all classes, or build_loader the classes of data.train"
        raise ValueError(
            f"{key} must have data.num_classes={num_classes} classes, found {found} in {images.path!r}: {remedy}"
        )
