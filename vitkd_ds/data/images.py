"""Open a split's images in one of the two backends, and check their classes and labels."""

import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitkd_ds.config.image_sizes import Phases
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
"""Maximum number of class names in a message."""


class Images(Protocol):
    """Interface of an opened file or folder of images, implemented by both backends."""

    path: str
    classes: tuple[str, ...]
    """Class names in label order; empty if the images have no labels or their labels are ignored."""
    labels: np.ndarray
    """Label of each image, int64. If there are no classes, all labels are 0."""
    chosen: np.ndarray
    """Numbers of the images that the split uses, ascending, int64; see `vitkd_ds.data.subset`."""
    skippable: frozenset[int]
    """Statuses that mean a faulty image, not a fault of the disk or the caller. Only such images may be skipped."""
    unread: frozenset[int]
    """Statuses that mean a fault of the disk. Images with these statuses are read again."""
    fingerprint: int
    """Hash of the list of images: their order, labels and positions, and which of them the split uses."""
    content: int
    """Hash of the images: for a .beton, of their stored checksums; otherwise, of their names, sizes and labels."""

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield micro-batches of decoded, cropped and augmented samples, in order.

        A micro-batch is a pair of images, uint8 [micro-batch, size, size, 3], and their statuses. Status 0 means
        decoded. Its arrays are valid until the next micro-batch is requested.
        """

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode a few samples at once; return their images and statuses as in `decoded`."""

    def is_there(self, index: int) -> bool:
        """Return False if reading an image again cannot succeed, because the file was truncated or removed."""

    def reason(self, index: int, status: int) -> str:
        """Return why an image was not decoded, as the end of a sentence that starts with "image 7"."""

    def close(self) -> None:
        """Close open files; a second call does nothing."""

    def pages(self) -> dict[str, Any]:
        """Return the layout of the .beton: the first three arguments of `quasi_random_order`; FFCV backend only."""


def open_images(
    data: DataConfig,
    *,
    split: str,
    seed: int,
    micro_batch_size: int,
    classes: tuple[str, ...] | None = None,
    augmenter: Augmenter | None = None,
    phases: Phases | None = None,
) -> Images:
    """Open the images of a split with the backend data.backend.

    Args:
        augmenter: augmentation after the crop; None disables it.
        classes: names of the training classes in label order. The split may have only some of these classes, or have
            them in another order; its labels are renumbered by name. With None, the split's own classes are used. There
            must be data.num_classes classes in both cases.
        phases: sizes of the training images in each epoch; None uses data.image_size.

    Raises:
        ValueError: the file is invalid, the number of classes is wrong, or a class is not in `classes`.
    """
    key = f"data.{split}"
    path = data.train if split == "train" else data.val
    crops = crops_of(data, split=split, seed=seed)
    if isinstance(crops, TrainCrops):
        crops = replace(crops, phases=phases)
    sizes = {"micro_batch_size": micro_batch_size, "num_workers": data.num_workers or len(os.sched_getaffinity(0))}
    is_quasi_random = split == "train" and data.order == "quasi_random"
    if path == "demo":
        path = demo_beton(split)
    # Import only the backend in use, so that the packages of the other backend are not needed.
    if data.backend == "torchvision":
        from vitkd_ds.data.torchvision import TorchvisionImages

        if is_quasi_random:
            raise ValueError("data.order=quasi_random needs data.backend=ffcv, got torchvision. Change one of them.")
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
    """Return `Images.fingerprint` of a split without opening its images in a backend."""
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
    """Return the crops of a split: random for train, centred for val."""
    if split == "val":
        return CentreCrops(data.image_size, data.val_crop_fraction, data.interpolation)
    scale, ratio, flip = data.crop_scale, data.crop_ratio, data.flip_probability
    return TrainCrops(seed, data.image_size, scale, ratio, flip, data.interpolation)


def _renumber(images: Images, classes: tuple[str, ...], key: str, *, is_known: bool) -> None:
    """Renumber the labels of images by class name to match `classes`.

    Args:
        classes: the training classes in label order.
        is_known: True if the classes come from a student and there are no training images. It only changes the
            messages.
    """
    found = images.classes
    if found == classes:
        return
    position = {name: label for label, name in enumerate(classes)}
    unknown = [name for name in found if name not in position]
    owner = "the student" if is_known else "data.train"
    if not found:
        raise ValueError(f"{images.path!r} ({key}) has no labels, but {owner} has classes. Use labelled images.")
    if unknown:
        remedy = "use images of the student's classes" if is_known else "pack both with the same --classes"
        if not classes:
            remedy = "pack both with --labels none, ignore them with --data.labels=ignore"
        raise ValueError(
            f"{images.path!r} ({key}) has classes that {owner} does not have: {_listed(unknown)} "
            f"({nearest(unknown[0], classes)}). To fix this, {remedy}, or rename the class."
        )
    if len(found) < len(classes):
        logger.info("%s has %d of the %d classes of %s", key, len(found), len(classes), owner)
    else:
        logger.info("%s has the %d classes of %s in another order", key, len(classes), owner)
    images.labels = np.array([position[name] for name in found], np.int64)[images.labels]
    images.classes = classes


def check_classes(expected: tuple[str, ...], found: tuple[str, ...], *, source: str) -> None:
    """Check that a teacher's file has the classes of data.train in the same order.

    Args:
        source: name of the teacher's file for the message.

    Raises:
        ValueError: the classes differ. The message lists the classes that only one of the two has. If only the order
            differs, it gives the first difference.
    """
    if found == expected:
        return
    known, wanted = set(found), set(expected)
    missing, extra = [name for name in expected if name not in known], [name for name in found if name not in wanted]
    differences = [f"{what} {_listed(names)}" for what, names in (("lacks", missing), ("also has", extra)) if names]
    for i, (name, other) in enumerate(zip_longest(expected, found)):
        if name != other and not differences:
            differences = [f"has {other!r} as class {i}, where data.train has {name!r}"]
    raise ValueError(
        f"{source} does not match the classes of data.train: it {' and '.join(differences)}. Pack the images with "
        "--classes in the teacher's order, or use another teacher."
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
            remedy = f"set --data.num_classes={found}, or train without labels (--data.labels=ignore)"
        if key == "data.val":
            remedy = "use images of all classes, or pass build_loader the classes of data.train"
        raise ValueError(
            f"{key} must have data.num_classes={num_classes} classes, but {images.path!r} has {found}: {remedy}"
        )
