"""Which image is seen when and where: pure functions of seed, epoch, rank and batch sizes.

Separate from the loader because these are laws that tests can hold without FFCV: each image at most once per epoch, the
same images in a step at any number of ranks, a resumed epoch equal to an uninterrupted one. Nothing here has state, so
there is nothing to save in a checkpoint but the seed, the epoch and the step.
"""

import numpy as np

from vitkd_ds.data.draws import keyed_rng

ORDER_STREAM = 1
"""Last part of the key of `train_order`, so that no other use of (seed, epoch) draws the same numbers."""


def steps_per_epoch(num_images: int, *, global_batch_size: int) -> int:
    """Whole global batches in an epoch; raises ValueError when there is none."""
    if num_images < global_batch_size:
        raise ValueError(
            f"an epoch must have at least one global batch, found {num_images} training images and global_batch_size "
            f"{global_batch_size}: lower global_batch_size to {num_images} or less, or give more images"
        )
    return num_images // global_batch_size


def train_order(num_images: int, *, seed: int, epoch: int, global_batch_size: int) -> np.ndarray:
    """Order in which an epoch shows the training images to all ranks together.

    Returns:
        int64 [steps_per_epoch * global_batch_size], each index at most once; the rest of the permutation, less than one
        global batch, is left out of this epoch.
    """
    num_rows = steps_per_epoch(num_images, global_batch_size=global_batch_size) * global_batch_size
    return keyed_rng(seed, epoch, ORDER_STREAM).permutation(num_images)[:num_rows].astype(np.int64)


def accumulation_steps(*, world_size: int, micro_batch_size: int, global_batch_size: int) -> int:
    """Micro-batches per rank that make a global batch; raises ValueError unless it is a whole number."""
    per_forward = world_size * micro_batch_size
    if global_batch_size % per_forward:
        raise ValueError(
            f"global_batch_size must be a multiple of micro-batch size x ranks, found {global_batch_size} and "
            f"{micro_batch_size} x {world_size} = {per_forward}: change global_batch_size or micro_batch_size_per_gpu"
        )
    return global_batch_size // per_forward


def micro_batch_size(*, world_size: int, limit: int, global_batch_size: int) -> int:
    """The largest micro-batch, at most `limit`, that divides a rank's share of the global batch.

    Raises:
        ValueError: the ranks cannot share the global batch; the message lists the numbers of ranks that can.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        fitting = ", ".join(str(n) for n in range(1, global_batch_size + 1) if global_batch_size % n == 0)
        raise ValueError(
            f"global_batch_size must be a multiple of the number of ranks, found {global_batch_size} and {world_size} "
            f"ranks: use {fitting} ranks, or change --global_batch_size"
        )
    return max(size for size in range(1, min(limit, share) + 1) if share % size == 0)


def rank_slice(
    order: np.ndarray, *, rank: int, world_size: int, micro_batch_size: int, global_batch_size: int
) -> np.ndarray:
    """The part of an epoch's order that one rank decodes, in its own order.

    Each global batch is cut into consecutive micro-batches, dealt to the ranks in turn. So a micro-batch consists of
    the same images at any number of ranks, and a step's global batch is the same set.

    Args:
        order: int64, whole global batches, as `train_order` gives it.

    Returns:
        int64 [steps_per_epoch * accumulation * micro_batch_size].
    """
    check_rank(rank, world_size)
    accumulation = accumulation_steps(
        world_size=world_size, micro_batch_size=micro_batch_size, global_batch_size=global_batch_size
    )
    assert len(order) % global_batch_size == 0, f"order of {len(order)} is not whole global batches"
    return order.reshape(-1, accumulation, world_size, micro_batch_size)[:, :, rank].reshape(-1)


def val_shard(num_images: int, *, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The validation images of one rank: every image on exactly one rank, equally many rows on each.

    Returns:
        indices int64 [ceil(num_images / world_size)], and is_real, a bool of the same length: False marks padding,
        which repeats image 0 and must not be counted. A rank has at most one row of padding.
    """
    check_rank(rank, world_size)
    if num_images < 1:
        raise ValueError(f"validation must have at least one image, found {num_images}: give another data.val")
    indices = rank + world_size * np.arange(-(-num_images // world_size), dtype=np.int64)
    is_real = indices < num_images
    return np.where(is_real, indices, 0), is_real


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless `rank` is one of `world_size` ranks."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), found rank {rank} of {world_size}: check the launcher")
