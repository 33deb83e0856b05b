"""Build the loader of one split on one rank.

There are two backends: `vitkd_ds.data.beton.stream`, which is based on FFCV, and `vitkd_ds.data.torchvision`.
"""

import torch

from vitkd_ds.config.image_sizes import Phases
from vitkd_ds.config.run import AugmentConfig, DataConfig
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.colours import IMAGENET, Statistics
from vitkd_ds.data.epochs import Loader
from vitkd_ds.data.images import SPLITS, open_images

CPU = torch.device("cpu")


def build_loader(
    data: DataConfig,
    *,
    split: str,
    augment: AugmentConfig | None = None,
    rank: int = 0,
    world_size: int = 1,
    micro_batch_size: int,
    global_batch_size: int | None = None,
    seed: int = 0,
    classes: tuple[str, ...] | None = None,
    device: torch.device | str = CPU,
    normalize: Statistics | None = None,
    statistics: Statistics = IMAGENET,
    phases: Phases | None = None,
) -> Loader:
    """Open and check the images of a split, and return their loader for one rank.

    Args:
        data: paths and crop settings; the path "demo" means the images that come with the package.
        split: "train" (shuffled, random crops, only whole global batches) or "val" (each image once, central crops).
        augment: augmentation after the crop in training; None disables it. Mixup and CutMix are in `train.mixing`.
        micro_batch_size: images per forward pass on this rank.
        global_batch_size: images per training step over all ranks; None means one micro-batch per rank.
        classes: training classes in label order; labels are renumbered to match. None keeps the split's own labels.
        device: device of the returned micro-batches.
        normalize: (mean, std), 3 numbers each, to return fp32 images (x / 255 - mean) / std; None returns uint8.
        statistics: the model's (mean, std), for RandAugment's fill colour and for the noise of random erasing.
        phases: image size and strength of RandAugment in each training epoch, from `vitkd_ds.config.image_sizes`. None
            uses data.image_size and full strength; data.image_sizes itself is ignored.

    Raises:
        ValueError: an argument, a file or a class is invalid.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if global_batch_size is None:
        global_batch_size = micro_batch_size * world_size
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
    device = _device_of(device)
    # The images themselves are checked when they are opened.
    augment = augment or AugmentConfig()
    has_work = split == "train" and Augmenter.has_work(augment)
    augmenter = Augmenter(augment, seed=seed, statistics=statistics, phases=phases) if has_work else None
    options = {"split": split, "seed": seed, "micro_batch_size": micro_batch_size}
    images = open_images(data, classes=classes, augmenter=augmenter, phases=phases, **options)
    return Loader(
        images,
        data,
        repeats=augment.repeats,
        rank=rank,
        world_size=world_size,
        global_batch_size=global_batch_size,
        device=device,
        normalize=normalize,
        **options,
    )


def _device_of(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as cuda:0, got {device!r}: {error}") from error
