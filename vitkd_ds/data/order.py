"""Compute which images each rank uses in an epoch, and their order.

The order depends only on seed, epoch, rank and batch sizes, so that a checkpoint needs to store only seed, epoch and
step. Without repeats and class balancing, each image appears at most once per epoch. An optimizer step uses the same
images for any number of ranks, and a resumed epoch equals an uninterrupted one. This module is separate from the loader
so that tests can check these properties without FFCV.
"""

import math

import numpy as np

from vitkd_ds.data.draws import keyed_rng

SAMPLE_DTYPE = np.dtype([("index", "<i8"), ("repeat", "<i4"), ("epoch", "<i4")])
"""Sample of an epoch: an image's number in its file, how often the epoch has shown the image before, and the epoch."""
ORDER_STREAM = 1
"""Last number of the key (seed, epoch, ORDER_STREAM); other uses of (seed, epoch) have another last number."""
MAX_LANES = 64
"""Maximum number of lanes of a quasi-random order. A lane is a sequence of file pages; all are read in parallel."""
WINDOW_BYTES = 4 * 2**30
"""Total size in bytes of the windows of all lanes; the page cache must hold them. See `quasi_random_order`."""


def steps_per_epoch(num_images: int, *, global_batch_size: int) -> int:
    """Return the number of whole global batches in an epoch; raise ValueError if there are too few images for one."""
    if num_images < global_batch_size:
        raise ValueError(
            f"{num_images} training images are fewer than one global batch (global_batch_size={global_batch_size}). "
            f"Pass --global_batch_size={1 << max(num_images, 1).bit_length() - 1}, or use more images."
        )
    return num_images // global_batch_size


def random_order(num_images: int, *, seed: int, epoch: int, global_batch_size: int, repeats: int = 1) -> np.ndarray:
    """Return the samples of an epoch, for all ranks together, in random order.

    Each pair (index, repeat) appears at most once. Images left over after the last whole global batch are not used.

    If `repeats` is above 1 (DeiT's repeated augmentation), the epoch keeps its length but has fewer images, and each of
    them appears `repeats` times. All copies of an image are in the same global batch, as far apart as possible. If
    `repeats` does not divide the global batch size, the copies of one image continue in the next global batch.

    Returns:
        SAMPLE_DTYPE [steps * global_batch_size].
    """
    num_rows = steps_per_epoch(num_images, global_batch_size=global_batch_size) * global_batch_size
    order = keyed_rng(seed, epoch, ORDER_STREAM).permutation(num_images)[: -(-num_rows // repeats)]
    samples = _repeated(order, repeats, epoch)[:num_rows].reshape(-1, global_batch_size)
    apart = np.argsort(np.arange(global_batch_size) % repeats, kind="stable")
    return samples[:, apart].reshape(-1)


def class_balanced_order(
    labels_N: np.ndarray, *, seed: int, epoch: int, global_batch_size: int, repeats: int = 1
) -> np.ndarray:
    """Return a random order with all classes equally frequent; length and result are as in `random_order`.

    Without repeats, the numbers of samples of two classes differ by at most one. All images of a class are used before
    one of them is used again; that sample then has a higher `repeat`, so its crop and augmentation differ. If `repeats`
    is above 1, each image that is chosen appears `repeats` times in succession.
    """
    num_rows = steps_per_epoch(len(labels_N), global_batch_size=global_batch_size) * global_batch_size
    rng = keyed_rng(seed, epoch, ORDER_STREAM)
    num_draws = -(-num_rows // repeats)
    # Shuffle within each class, then take the classes in turn, in random order.
    shuffled = rng.permutation(len(labels_N))
    by_class = shuffled[np.argsort(labels_N[shuffled], kind="stable")]
    _, first, counts = np.unique(labels_N[by_class], return_index=True, return_counts=True)
    turn = np.arange(num_draws)
    chosen = rng.permutation(len(counts))[turn % len(counts)]
    drawn_before, place = np.divmod(turn // len(counts), counts[chosen])
    mixed = rng.permutation(num_draws)
    samples = _repeated(by_class[first[chosen] + place][mixed], repeats, epoch)[:num_rows]
    samples["repeat"] += repeats * np.repeat(drawn_before[mixed], repeats)[:num_rows].astype(np.int32)
    return samples


def quasi_random_order(
    offsets_N: np.ndarray,
    *,
    file_bytes: int,
    page_bytes: int,
    seed: int,
    epoch: int,
    global_batch_size: int,
    repeats: int = 1,
) -> np.ndarray:
    """Return an order for files larger than memory: shuffle whole pages, and images only among nearby pages.

    The pages of the file, in random order, are divided equally into lanes. A lane is read in windows of several pages,
    and images are shuffled only within a window. The current windows of all lanes have a total size of `WINDOW_BYTES`.
    Every global batch takes the same number of images from each lane. The order is the same for any number of ranks.

    The images of a global batch are sorted by lane. A rank therefore reads only the pages of its lanes, unless a
    micro-batch ends inside a lane. The number of lanes is the greatest common divisor of `MAX_LANES` and the global
    batch size.

    Args:
        offsets_N: byte offset of each image in the file.
        file_bytes: size of the file.
        page_bytes: size of a page of the file.

    Returns:
        SAMPLE_DTYPE [steps * global_batch_size]. Unlike in `random_order`, the copies of a repeated image follow each
        other within their lane.
    """
    num_images = len(offsets_N)
    num_steps = steps_per_epoch(num_images, global_batch_size=global_batch_size)
    num_lanes = math.gcd(global_batch_size, MAX_LANES)
    rows_per_lane = num_steps * global_batch_size // num_lanes
    # Pages are in random order, images within a page in file order, so that whole pages are read from the disk.
    rng = keyed_rng(seed, epoch, ORDER_STREAM)
    pages_N = offsets_N.astype(np.int64) // page_bytes
    place_of_page = rng.permutation(int(pages_N.max()) + 1)
    images_per_lane = -(-rows_per_lane // repeats)
    order = np.lexsort((offsets_N, place_of_page[pages_N]))[: num_lanes * images_per_lane].reshape(num_lanes, -1)
    # Images are shuffled only within a window, so that all pages in use fit into the page cache.
    window = max(1, int(num_images * WINDOW_BYTES / file_bytes / num_lanes))
    for first in range(0, images_per_lane, window):
        order[:, first : first + window] = rng.permuted(order[:, first : first + window], axis=1)
    # Every global batch takes the same number of rows from each lane.
    lanes = _repeated(order, repeats, epoch)[:, :rows_per_lane]
    return lanes.reshape(num_lanes, num_steps, -1).transpose(1, 0, 2).reshape(-1)


def _repeated(order: np.ndarray, repeats: int, epoch: int) -> np.ndarray:
    samples = np.zeros((*order.shape[:-1], order.shape[-1] * repeats), SAMPLE_DTYPE)
    samples["index"] = np.repeat(order, repeats, axis=-1)
    samples["repeat"] = np.arange(samples.shape[-1]) % repeats
    samples["epoch"] = epoch
    return samples


def accumulation_steps(*, world_size: int, micro_batch_size: int, global_batch_size: int) -> int:
    """Return the number of micro-batches per rank in a global batch; raise ValueError if it is not an integer."""
    per_forward = world_size * micro_batch_size
    if global_batch_size % per_forward:
        raise ValueError(
            f"global_batch_size must be a multiple of micro-batch size x ranks, got {global_batch_size} and "
            f"{micro_batch_size} x {world_size} = {per_forward}. Change global_batch_size or micro_batch_size_per_gpu."
        )
    return global_batch_size // per_forward


def rank_slice(samples: np.ndarray, *, rank: int, world_size: int, micro_batch_size: int) -> np.ndarray:
    """Return the samples of one rank, given all samples or the remaining samples of an epoch.

    The samples are divided into consecutive micro-batches, which the ranks get in turn. Therefore, a micro-batch or a
    global batch has the same images for any number of ranks, and the images that are already done are always the first
    ones of the order.

    Raises:
        ValueError: the number of samples is not a multiple of micro-batch size x ranks.
    """
    check_rank(rank, world_size)
    if len(samples) % (world_size * micro_batch_size):
        raise ValueError(
            f"the epoch has {len(samples)} images left, which is not a multiple of micro-batch size x ranks "
            f"({micro_batch_size} x {world_size}). Resume from a state at the end of a global batch, or change the "
            "micro-batch size or the number of ranks."
        )
    return samples.reshape(-1, world_size, micro_batch_size)[:, rank].reshape(-1)


def val_share(num_images: int, *, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which validation images a rank evaluates. Each image is on one rank; all ranks have equally many rows.

    Returns:
        The indices of the images, int64 [ceil(num_images / world_size)], and a bool array of the same length. The array
        is False for a row that only pads the shard. Such a row repeats image 0 and must not be counted. A rank has at
        most one such row.
    """
    check_rank(rank, world_size)
    if num_images < 1:
        raise ValueError(f"validation needs at least one image, got {num_images}. Set another data.val.")
    indices = rank + world_size * np.arange(-(-num_images // world_size), dtype=np.int64)
    is_real = indices < num_images
    return np.where(is_real, indices, 0), is_real


def check_rank(rank: int, world_size: int) -> None:
    """Raise ValueError unless `rank` is one of `world_size` ranks."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in [0, world_size), got rank {rank} of {world_size}. Check the launcher.")


def check_state(state: dict[str, int | str], identity: dict[str, int | str], *, num_rows: int) -> None:
    """Raise ValueError if a saved loader state is damaged or belongs to another order.

    Args:
        identity: values that determine the loader's order.
        num_rows: images per epoch over all ranks.
    """
    if set(state) != {*identity, "epoch", "images"}:
        raise ValueError(f"a loader's state must come from its state_dict(), got the keys {sorted(state)}")
    for key, value in identity.items():
        if state[key] != value:
            raise ValueError(
                f"the state was saved with {key} {state[key]}, but the loader has {value}. Use the same data, seed and "
                "batch size."
            )
    for key in ("epoch", "images"):
        if type(state[key]) is not int:
            raise ValueError(f"the loader state is damaged: {key} must be an integer, got {state[key]!r}")
    if state["epoch"] < 0 or not 0 <= state["images"] <= num_rows:
        raise ValueError(
            f"the loader state is damaged: image {state['images']} of epoch {state['epoch']} is out of range (an epoch "
            f"has {num_rows} images)"
        )
