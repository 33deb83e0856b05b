"""Which image is seen when and on which rank: pure functions of seed, epoch, rank and batch sizes.

Separate from the loader because tests can hold these laws without FFCV: each image at most once per epoch, the same
images in a step at any number of ranks, a resumed epoch equal to an uninterrupted one. Nothing here has state, so a
checkpoint saves no more than seed, epoch and step.
"""

import math

import numpy as np

from vitkd_ds.data.draws import keyed_rng

SAMPLE_DTYPE = np.dtype([("index", "<i8"), ("repeat", "<i4"), ("epoch", "<i4")])
"""One place in the order of an epoch: an image's number in its file, and how often the epoch showed it before."""
ORDER_STREAM = 1
"""Last part of the key of an epoch's order, so that no other use of (seed, epoch) draws the same numbers."""
MAX_LANES = 64
"""Most parts of the file that a quasi-random order reads side by side; each rank reads some of them."""
WINDOW_BYTES = 4 * 2**30
"""Bytes that all windows of a quasi-random order together keep in the page cache."""


def steps_per_epoch(num_images: int, *, global_batch_size: int) -> int:
    """Count the whole global batches of an epoch; raises ValueError when there is none."""
    if num_images < global_batch_size:
        raise ValueError(
            f"an epoch must have at least one global batch, found {num_images} training images and global_batch_size "
            f"{global_batch_size}: lower global_batch_size to {num_images} or less, or give more images"
        )
    return num_images // global_batch_size


def random_order(num_images: int, *, seed: int, epoch: int, global_batch_size: int, repeats: int = 1) -> np.ndarray:
    """Shuffle the training images that all ranks together see in an epoch: SAMPLE_DTYPE [steps * global_batch_size],
    each (index, repeat) at most once. The rest of the permutation, less than one global batch, is left out.

    With `repeats`, the epoch shows only some of the images, each so many times, and stays as long, as DeiT's repeated
    augmentation does. All copies of an image are in one global batch, as far apart as possible; where `repeats` does
    not divide the global batch, those at its end continue in the next.
    """
    num_rows = steps_per_epoch(num_images, global_batch_size=global_batch_size) * global_batch_size
    order = keyed_rng(seed, epoch, ORDER_STREAM).permutation(num_images)[: -(-num_rows // repeats)]
    samples = _repeated(order, repeats, epoch)[:num_rows].reshape(-1, global_batch_size)
    apart = np.argsort(np.arange(global_batch_size) % repeats, kind="stable")
    return samples[:, apart].reshape(-1)


def class_balanced_order(
    labels_N: np.ndarray, *, seed: int, epoch: int, global_batch_size: int, repeats: int = 1
) -> np.ndarray:
    """Shuffle as many images of each class as of any other, or one more, in an epoch of the usual length: what
    `random_order` returns. A class gives all its images before it gives one again, as another repeat of it, which is
    cut and augmented anew; where `repeats` is more than 1, each time so many repeats follow each other."""
    num_rows = steps_per_epoch(len(labels_N), global_batch_size=global_batch_size) * global_batch_size
    rng = keyed_rng(seed, epoch, ORDER_STREAM)
    num_draws = -(-num_rows // repeats)
    # Each class in an order of its own, and the classes in turn, beginning anywhere.
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
    """Shuffle the pages of a file that is larger than memory, and the images within windows of pages. `offsets_N` is
    where each image lies in the file, in bytes.

    The shuffled pages are dealt in equal parts to lanes. Each lane gives an equal part of every global batch, shuffled
    within a window of `WINDOW_BYTES` / lanes. So a rank reads the pages of its lanes only, one window after the other,
    as long as its micro-batches take whole lanes (best at a global batch that `MAX_LANES` divides); and the order is
    the same at any number of ranks.

    Returns what `random_order` returns, but the copies of an image follow each other.
    """
    num_images = len(offsets_N)
    num_steps = steps_per_epoch(num_images, global_batch_size=global_batch_size)
    num_lanes = math.gcd(global_batch_size, MAX_LANES)
    rows_per_lane = num_steps * global_batch_size // num_lanes
    # Pages in a random order, images within a page in the file's: what is read from the disk is read as a whole.
    rng = keyed_rng(seed, epoch, ORDER_STREAM)
    pages_N = offsets_N.astype(np.int64) // page_bytes
    place_of_page = rng.permutation(int(pages_N.max()) + 1)
    images_per_lane = -(-rows_per_lane // repeats)
    order = np.lexsort((offsets_N, place_of_page[pages_N]))[: num_lanes * images_per_lane].reshape(num_lanes, -1)
    # Images are shuffled no further than a window, so that the page cache holds all pages that are in use.
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
    """Count the micro-batches per rank of a global batch; raises ValueError unless they are a whole number."""
    per_forward = world_size * micro_batch_size
    if global_batch_size % per_forward:
        raise ValueError(
            f"global_batch_size must be a multiple of micro-batch size x ranks, found {global_batch_size} and "
            f"{micro_batch_size} x {world_size} = {per_forward}: change global_batch_size or micro_batch_size_per_gpu"
        )
    return global_batch_size // per_forward


def rank_slice(samples: np.ndarray, *, rank: int, world_size: int, micro_batch_size: int) -> np.ndarray:
    """Take one rank's share of an epoch's order, or of its rest; raises ValueError if the ranks cannot share that.

    The order is cut into consecutive micro-batches, which are dealt to the ranks in turn. So a micro-batch consists of
    the same images at any number of ranks, a step's global batch is the same set, and what all ranks have done at any
    time is a beginning of the order.
    """
    check_rank(rank, world_size)
    if len(samples) % (world_size * micro_batch_size):
        raise ValueError(
            f"the {len(samples)} images left in the epoch must be a multiple of micro-batch size x ranks, found "
            f"{micro_batch_size} x {world_size}: resume where a global batch is complete, or with other sizes"
        )
    return samples.reshape(-1, world_size, micro_batch_size)[:, rank].reshape(-1)


def val_share(num_images: int, *, rank: int, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Take one rank's share of the validation images: every image on exactly one rank, equally many rows on each.

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


def check_state(state: dict[str, int | str], identity: dict[str, int | str], *, num_rows: int) -> None:
    """Check a loader's saved state, which comes from outside: raises ValueError if it is damaged, or of an order that
    does not depend on the same `identity`. `num_rows` is what all ranks together take of an epoch, in images."""
    if set(state) != {*identity, "epoch", "images"}:
        raise ValueError(f"a loader's state must come from its state_dict(), found the keys {sorted(state)}")
    for key, value in identity.items():
        if state[key] != value:
            raise ValueError(
                f"the loader's {key} must be the one that the state was saved with, found {value} and {state[key]} in "
                f"the state: give the same data, seed and batch size"
            )
    for key in ("epoch", "images"):
        if type(state[key]) is not int:
            raise ValueError(f"a state's {key} must be a whole number, found {state[key]!r}: the state is damaged")
    if state["epoch"] < 0 or not 0 <= state["images"] <= num_rows:
        raise ValueError(
            f"a state must lie in an epoch of {num_rows} images, found image {state['images']} of epoch "
            f"{state['epoch']}: it is damaged"
        )
