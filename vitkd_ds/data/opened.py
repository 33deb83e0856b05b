"""A split's images, opened: from the run's settings to one of the two backends, with the checks that opening allows."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from vitkd_ds.config import DataConfig
from vitkd_ds.data.crops import CentreCrops, TrainCrops
from vitkd_ds.data.fashion_mnist import demo_beton, demo_folder

SPLITS = ("train", "val")
DEMO = "demo"
"""As a path: the images inside the package."""


def open_images(data: DataConfig, *, split: str, seed: int, micro_batch_size: int) -> Any:
    """Open the images of a split in the backend that `data` names.

    Returns:
        `vitkd_ds.data.loader.Images`.

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
