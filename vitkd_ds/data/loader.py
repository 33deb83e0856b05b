"""The sharded loader: which rank decodes which image when, and the micro-batches it hands to the training loop.

The order comes from `vitkd_ds.data.order`, the boxes from `vitkd_ds.data.crops`, the threads from FFCV. Nothing here
is random and nothing has state between epochs, so any step of any epoch can be had at once and bit for bit.
`torch.distributed` is not imported: rank and world size are arguments.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vitkd_ds.config import DataConfig
from vitkd_ds.data.backend import MAX_DECODER_THREADS, FFCVLoader, OrderOption, PipelineSpec
from vitkd_ds.data.crops import INDEX, centre_crops, seeded_crops
from vitkd_ds.data.fashion_mnist import demo_beton
from vitkd_ds.data.fields import BetonInfo, check_beton
from vitkd_ds.data.iterate import decoded
from vitkd_ds.data.order import accumulation_steps, check_rank, rank_slice, steps_per_epoch, train_order, val_shard
from vitkd_ds.data.pipelines import DECODED, STATUS_TEXT, CropDecoder

PADDING_LABEL = -1
"""Label of a validation row that only fills a rank up and must not be counted."""
SPLITS = ("train", "val")
DEMO = "demo"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Shard:
    """Which part of each global batch this rank decodes."""

    rank: int
    world_size: int
    micro_batch_size: int
    """Images per forward on this rank."""
    global_batch_size: int
    """Images per optimizer step over all ranks; validation does not use it."""


class Loader:
    """Micro-batches of one split for one rank; made by `build_loader`.

    Attributes:
        info: the checked .beton.
        steps_per_epoch: optimizer steps of an epoch; in validation, the same as `num_batches`.
        num_batches: micro-batches per rank and epoch.
    """

    def __init__(
        self,
        ffcv: FFCVLoader,
        info: BetonInfo,
        data: DataConfig,
        *,
        split: str,
        shard: Shard,
        seed: int,
        device: torch.device,
    ):
        self.info = info
        self._ffcv, self._data, self._shard, self._seed, self._device = ffcv, data, shard, seed, device
        self._is_train = split == "train"
        images, self._labels = ffcv.reader.metadata["f0"], ffcv.reader.metadata["f1"]
        self._heights, self._widths = images["height"].astype(np.int64), images["width"].astype(np.int64)
        if self._is_train:
            self.steps_per_epoch = steps_per_epoch(info.num_images, global_batch_size=shard.global_batch_size)
            self._accumulation_steps = accumulation_steps(
                world_size=shard.world_size,
                micro_batch_size=shard.micro_batch_size,
                global_batch_size=shard.global_batch_size,
            )
            self.num_batches = self.steps_per_epoch * self._accumulation_steps
        else:
            self._num_val_images = min(info.num_images, data.max_val_images or info.num_images)
            rows_per_rank = -(-self._num_val_images // shard.world_size)
            self.num_batches = self.steps_per_epoch = -(-rows_per_rank // shard.micro_batch_size)
            self._accumulation_steps = 1

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Iterate over one epoch.

        Args:
            epoch: decides order and crops in training; makes no difference in validation.
            start_step: optimizer steps of this epoch that are already done; what follows is bit for bit what an
                uninterrupted epoch gives after them.

        Returns:
            Iterator over images_BCHW (uint8, RGB, channels last in memory) and labels_B (int64), both on the device
            and copies. In validation the last micro-batch may be smaller, equally on all ranks, and padding rows have
            label -1. Leaving the loop early ends the decoding thread as soon as the iterator is dropped or closed.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(
                f"start_step must be in [0, {self.steps_per_epoch}], the steps per epoch of {str(self.info.path)!r}, "
                f"found {start_step}: resume with the batch size and data the checkpoint was made with"
            )
        rows, labels = self._train_rows(epoch) if self._is_train else self._val_rows()
        done = start_step * self._accumulation_steps * self._shard.micro_batch_size
        return self._micro_batches(rows[done:], labels[done:])

    def _train_rows(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shard = self._shard
        global_batch_size = shard.global_batch_size
        order = train_order(self.info.num_images, seed=self._seed, epoch=epoch, global_batch_size=global_batch_size)
        indices = rank_slice(
            order,
            rank=shard.rank,
            world_size=shard.world_size,
            micro_batch_size=shard.micro_batch_size,
            global_batch_size=global_batch_size,
        )
        rows = seeded_crops(
            self._heights[indices],
            self._widths[indices],
            indices,
            seed=self._seed,
            epoch=epoch,
            scale=self._data.crop_scale,
            ratio=self._data.crop_ratio,
            flip_probability=self._data.flip_probability,
        )
        return rows, self._labels[indices]

    def _val_rows(self) -> tuple[np.ndarray, np.ndarray]:
        indices, is_real = val_shard(self._num_val_images, rank=self._shard.rank, world_size=self._shard.world_size)
        indices = indices * self.info.num_images // self._num_val_images  # spread evenly, as files are sorted by class
        rows = centre_crops(
            self._heights[indices], self._widths[indices], indices, crop_fraction=self._data.val_crop_fraction
        )
        return rows, np.where(is_real, self._labels[indices], PADDING_LABEL)

    def _micro_batches(self, rows: np.ndarray, labels: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        copied, first, source = None, 0, decoded(self._ffcv, rows)
        try:
            for images_BHWC, status_B in source:
                chunk = slice(first, first + len(images_BHWC))
                self._check_status(rows[chunk, INDEX], status_B)
                view = torch.from_numpy(images_BHWC)
                if self._device.type == "cpu":
                    images = view.clone()
                else:
                    images = view.to(self._device, non_blocking=True)  # FFCV pins its ring where there is a GPU
                if self._device.type == "cuda":
                    copied = torch.cuda.current_stream(self._device).record_event()
                labels_B = torch.from_numpy(labels[chunk].astype(np.int64)).to(self._device, non_blocking=True)
                yield images.permute(0, 3, 1, 2), labels_B
                if copied is not None:
                    copied.synchronize()  # asking for the next micro-batch lets FFCV overwrite this one in the ring
                first = chunk.stop
        finally:
            if copied is not None:
                copied.synchronize()
            source.close()

    def _check_status(self, indices: np.ndarray, status_B: np.ndarray) -> None:
        bad = np.flatnonzero(status_B != DECODED)
        if len(bad):
            reasons = "; ".join(
                f"image {indices[i]} (class {self.info.classes[self._labels[indices[i]]]!r}) {STATUS_TEXT[status_B[i]]}"
                for i in bad
            )
            raise ValueError(f"each image of {str(self.info.path)!r} must decode, but {reasons}: pack the images again")


def _num_workers(data: DataConfig, local_world_size: int) -> int:
    num_workers = data.num_workers or max(1, len(os.sched_getaffinity(0)) // local_world_size)
    if num_workers > MAX_DECODER_THREADS:
        raise ValueError(
            f"data.num_workers must be at most the {MAX_DECODER_THREADS} CPUs this process has, found {num_workers}: "
            f"lower it, set 0 for automatic, or give the job more CPUs"
        )
    return num_workers


def _check_classes(info: BetonInfo, labels: np.ndarray, data: DataConfig, key: str) -> None:
    if len(info.classes) != data.num_classes:
        raise ValueError(
            f"{key} must have data.num_classes={data.num_classes} classes, found {len(info.classes)} in "
            f"{str(info.path)!r}: set --data.num_classes={len(info.classes)} or give other images"
        )
    if labels.min() < 0 or labels.max() >= data.num_classes:
        raise ValueError(
            f"labels of {key} must be in [0, {data.num_classes}), found {labels.min()} to {labels.max()} in "
            f"{str(info.path)!r}: pack the images again"
        )


def build_loader(
    data: DataConfig,
    *,
    split: str,
    rank: int = 0,
    world_size: int = 1,
    micro_batch_size: int,
    global_batch_size: int | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    local_world_size: int = 1,
) -> Loader:
    """Open a .beton for one rank; everything that can be wrong with it is said here, before training.

    Args:
        data: where the images are and how they are cropped; "demo" as a path is the data inside the package.
        split: train (shuffled, random crops, whole global batches) or val (each image once, centre crops).
        micro_batch_size: images per forward on this rank.
        global_batch_size: images per optimizer step over all ranks, training only; None is no accumulation.
        device: where micro-batches are put.
        local_world_size: ranks on this node, which share its CPUs when data.num_workers is 0.

    Raises:
        ValueError: an unfit file, class count, label, batch size, rank or number of workers.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, found {micro_batch_size}")
    path = data.train if split == "train" else data.val
    info = check_beton(demo_beton(split) if path == DEMO else Path(path))
    if global_batch_size is None:
        global_batch_size = micro_batch_size * world_size
    shard = Shard(rank, world_size, micro_batch_size, global_batch_size)
    check_rank(rank, world_size)
    ffcv = FFCVLoader(
        str(info.path),
        batch_size=micro_batch_size,
        num_workers=_num_workers(data, local_world_size),
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        drop_last=False,
        pipelines={"image": PipelineSpec("image", decoder=CropDecoder(data.image_size)), "label": None},
    )
    _check_classes(info, ffcv.reader.metadata["f1"], data, f"data.{split}")
    return Loader(ffcv, info, data, split=split, shard=shard, seed=seed, device=device)
