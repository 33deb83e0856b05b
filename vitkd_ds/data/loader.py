"""Build the loader of one split for one rank.

Pixels come from one of two backends, `vitkd_ds.data.beton.stream` (on FFCV) and `vitkd_ds.data.torchvision`.
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
    """Open the images of one split for one rank; all checks of them run here, before training, and raise ValueError.

    Args:
        data: where the images are and how they are cropped; "demo" as a path is the data inside the package.
        split: train (shuffled, random crops, whole global batches) or val (each image once, centre crops).
        augment: what follows the crop in training; None is nothing. Mixing is `vitkd_ds.train.mixing`'s.
        micro_batch_size: images per forward on this rank.
        global_batch_size: images per optimizer step over all ranks, training only; None is no accumulation.
        classes: the training images' in label order, by whose names the labels of val are numbered; None takes its own.
        device: where micro-batches are put.
        normalize: None leaves the images uint8; (mean, std), each of 3 numbers for images in 0..1, gives fp32 images
            (x / 255 - mean) / std.
        statistics: the model's (mean, std), for the colour of what RandAugment uncovers and the noise of erasing.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, found {micro_batch_size}")
    if global_batch_size is None:
        global_batch_size = micro_batch_size * world_size
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size must be at least 1, found {global_batch_size}: None is no accumulation")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be one of torch's, such as cuda:0, found {device!r}: {error}") from error
    # What is wrong with the images themselves is found when they are opened.
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
