"""A split's images, opened: from the run's settings to one of the two backends, with the checks that opening allows."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitkd_ds.config import DataConfig
from vitkd_ds.data.crops import CentreCrops, TrainCrops
from vitkd_ds.data.fashion_mnist import demo_beton, demo_folder

SPLITS = ("train", "val")
DEMO = "demo"
"""As a path: the images inside the package."""


class Images(Protocol):
    """An opened file or folder of images, in one of the two backends."""

    path: str
    classes: tuple[str, ...]
    labels: np.ndarray
    """int64, a label per image."""
    skippable: frozenset[int]
    """Statuses that are an image's own fault, not the disk's or ours."""

    def decoded(self, samples: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Decode samples in order: images uint8 [micro-batch, size, size, 3] and a status each (0 is decoded), valid
        until the next are asked for."""

    def decode(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same at once, for a few samples."""

    def reason(self, index: int, status: int) -> str:
        """What is wrong with an image, ending the sentence "image 7 ..."."""

    def fingerprint(self) -> int:
        """A number that is another one where images have other numbers, labels or places."""

    def layout(self) -> dict[str, Any]:
        """Where the images lie, for `vitkd_ds.data.order.quasi_random_order`; the FFCV backend alone has it."""


def open_images(data: DataConfig, *, split: str, seed: int, micro_batch_size: int) -> Images:
    """Open the images of a split in the backend that `data` names.

    Raises:
        ValueError: an unfit file, number of classes, or label.
    """
    key, path = f"data.{split}", data.train if split == "train" else data.val
    num_workers = data.num_workers or len(os.sched_getaffinity(0))
    crops = crops_of(data, split=split, seed=seed)
    if data.backend == "torchvision":
        from vitkd_ds.data.torchvision_images import TorchvisionImages  # neither backend needs the other's packages

        if data.order != "random" and split == "train":
            raise ValueError("data.order=quasi_random needs data.backend=ffcv, found torchvision: change one of them")
        path = demo_folder(split) if path == DEMO else path
        images = TorchvisionImages(path, crops, micro_batch_size=micro_batch_size, num_workers=num_workers)
    else:
        from vitkd_ds.data.pipelines import CropLoader

        images = CropLoader(
            demo_beton(split) if path == DEMO else Path(path),
            crops,
            micro_batch_size=micro_batch_size,
            num_threads=num_workers,
            is_quasi_random=split == "train" and data.order == "quasi_random",
        )
    _check_classes(images.path, images.classes, images.labels, data.num_classes, key)
    return images


def crops_of(data: DataConfig, *, split: str, seed: int) -> TrainCrops | CentreCrops:
    """Where the images of a split are cut."""
    if split == "val":
        return CentreCrops(data.image_size, data.val_crop_fraction, data.interpolation)
    return TrainCrops(
        seed=seed,
        size=data.image_size,
        scale=data.crop_scale,
        ratio=data.crop_ratio,
        flip_probability=data.flip_probability,
        interpolation=data.interpolation,
    )


def _check_classes(path: str, classes: tuple[str, ...], labels: np.ndarray, num_classes: int, key: str) -> None:
    if len(classes) != num_classes:
        raise ValueError(
            f"{key} must have data.num_classes={num_classes} classes, found {len(classes)} in {path!r}: set "
            f"--data.num_classes={len(classes)} or give other images"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels of {key} must be in [0, {num_classes}), found {labels.min()} to {labels.max()} in {path!r}: pack "
            f"the images again"
        )
