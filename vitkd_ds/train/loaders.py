"""Open a run's images: this rank's loaders of the splits and of the images for k-NN."""

from dataclasses import replace
from pathlib import Path

import torch

from vitkd_ds.config.image_sizes import Phases
from vitkd_ds.config.run import Run
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.epochs import Loader
from vitkd_ds.data.loader import build_loader
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import num_cpus
from vitkd_ds.models import build
from vitkd_ds.train.probe import NEIGHBOURS


def open_split(
    run: Run,
    split: str,
    micro_batch_size: int,
    device: torch.device,
    *,
    classes: tuple[str, ...] | None = None,
    phases: Phases | None = None,
) -> Loader:
    """Build this rank's loader for a split, "train" or "val". Errors are those of `build_loader`.

    Args:
        classes: class names in label order. They must include the split's classes. None keeps the split's own classes.
        phases: see `build_loader`.
    """
    is_train = split == "train"
    return build_loader(
        replace(run.data, num_workers=run.data.num_workers or num_cpus()),
        split=split,
        augment=run.augment if is_train else None,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        micro_batch_size=micro_batch_size,
        global_batch_size=run.global_batch_size if is_train else None,
        seed=run.seed,
        classes=classes,
        device=device,
        phases=phases,
        **({"statistics": build.statistics_of(run.student, run.teachers)} if is_train else {}),
    )


def open_knn(run: Run, micro_batch_size: int, device: torch.device) -> tuple[Loader, Loader] | None:
    """Build this rank's loaders of data.knn_train and data.knn_val; return None if they are not set.

    Raises:
        ValueError: a file is missing, unlabelled or too small for k-NN, or the two files have different classes.
    """
    if not run.data.knn_train:
        return None
    loaders, known = [], ()
    for split, least in (("train", NEIGHBOURS), ("val", 1)):
        key, path = f"data.knn_{split}", getattr(run.data, f"knn_{split}")
        path = str(demo_beton(split)) if path == "demo" else path
        if not Path(path).is_file():
            raise ValueError(f"{key}: no file {path}. Pack the images first, or pass demo.")
        images = check_beton(path)
        known = known or images.classes
        if len(images.classes) < 2 or images.num_images < least or set(images.classes) != set(known):
            raise ValueError(
                f"{key} needs at least {least} images, labelled with the classes of data.knn_train (at least two), but "
                f"{path} has {images.num_images} images of {len(images.classes)} classes. Pass another file."
            )
        shared = {"val": path, "labels": "use", "num_classes": len(known), "classes": "", "max_val_images": 0}
        own = replace(run, data=replace(run.data, **shared))
        loaders.append(open_split(own, "val", micro_batch_size, device, classes=known))
    return tuple(loaders)
