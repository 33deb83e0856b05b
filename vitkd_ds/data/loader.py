"""Build the loader of one split on one rank.

There are two backends: `vitkd_ds.data.beton.stream` (on FFCV) and `vitkd_ds.data.torchvision`.
"""

import torch

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
) -> Loader:
    """Open and check the images of one split on one rank; raise ValueError if an argument, file or class is invalid.

    Args:
        data: paths and crop settings; the path "demo" means the data inside the package.
        split: train (shuffled, random crops, whole global batches) or val (each image once, centre crops).
        augment: augmentation after the crop in training; None disables it. `vitkd_ds.train.mixing` does the mixing.
        micro_batch_size: images per forward on this rank.
        global_batch_size: images per optimizer step over all ranks, training only; None means no accumulation.
        classes: training classes in label order; the split's labels are renumbered to match. None keeps its own.
        device: device for the micro-batches.
        normalize: None keeps uint8 images; (mean, std), 3 numbers each for images in 0..1, returns fp32 images
            (x / 255 - mean) / std.
        statistics: the model's (mean, std), which give RandAugment's fill colour and random erasing's noise.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if global_batch_size is None:
        global_batch_size = micro_batch_size * world_size
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be a torch device such as cuda:0, got {device!r}: {error}") from error
    # The images themselves are checked when they are opened.
    augment = augment or AugmentConfig()
    has_work = split == "train" and Augmenter.has_work(augment)
    augmenter = Augmenter(augment, seed=seed, statistics=statistics) if has_work else None
    options = {"split": split, "seed": seed, "micro_batch_size": micro_batch_size}
    images = open_images(data, classes=classes, augmenter=augmenter, **options)
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
