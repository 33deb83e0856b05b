"""Where each image is cut: pure functions of the image's size and, in training, of (seed, epoch, image number).

FFCV draws its crops in the decoder threads, from generators that the operating system seeds, so two runs never agree.
Here the box of an image is computed before the epoch and travels to the decoder with the image's number. Nothing
depends on which thread, rank or restart decodes the image, and the compiled decoder holds no randomness.
"""

import numpy as np

from vitkd_ds.data.order import keyed_rng

INDEX, TOP, LEFT, HEIGHT, WIDTH, FLIP = range(6)
"""Columns of a crop row: the image's number, the box in its pixels, and 1 for a left-right flip of the result."""

CROP_STREAM = 2
"""Last part of the key, so that no other use of (seed, epoch) draws the same numbers."""
NUM_TRIES = 10
"""Boxes drawn before the central one is taken; torchvision's number."""
DRAWS_PER_TRY = 4


def _mix(x_N: np.ndarray) -> np.ndarray:
    """Splitmix64, a bijective hash of uint64 arrays; overflow is meant."""
    x_N = x_N + np.uint64(0x9E3779B97F4A7C15)
    x_N = (x_N ^ (x_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x_N = (x_N ^ (x_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x_N ^ (x_N >> np.uint64(31))


def _image_keys(indices_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    epoch_key = keyed_rng(seed, epoch, CROP_STREAM).integers(2**64, size=1, dtype=np.uint64)
    return _mix(_mix(indices_N.astype(np.uint64)) ^ epoch_key)


def _uniform(keys_N: np.ndarray, draw: int) -> np.ndarray:
    """The `draw`-th number in [0, 1) of each key: counter-based, so draws may be taken in any order."""
    offset = np.array([draw * 0xD1B54A32D192ED03 % 2**64], np.uint64)
    return (_mix(keys_N + offset) >> np.uint64(11)) * 2.0**-53


def _central_boxes(heights_N: np.ndarray, widths_N: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """The largest central box whose width / height lies in `ratio`, which torchvision takes when all tries fail."""
    too_narrow_N = widths_N / heights_N < ratio[0]
    too_wide_N = widths_N / heights_N > ratio[1]
    box_heights_N = np.where(too_narrow_N, np.rint(widths_N / ratio[0]), heights_N).astype(np.int64)
    box_widths_N = np.where(too_wide_N, np.rint(heights_N * ratio[1]), widths_N).astype(np.int64)
    box_heights_N, box_widths_N = np.maximum(box_heights_N, 1), np.maximum(box_widths_N, 1)
    return (heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2, box_heights_N, box_widths_N


def seeded_crops(
    heights_N: np.ndarray,
    widths_N: np.ndarray,
    indices_N: np.ndarray,
    *,
    seed: int,
    epoch: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    flip_probability: float,
) -> np.ndarray:
    """Random resized crops and flips, distributed as torchvision's RandomResizedCrop.

    Area uniform in `scale`, width / height log-uniform in `ratio`, ten tries, then the largest central box within
    `ratio`.

    Args:
        heights_N: height of each image, in pixels; `widths_N` likewise.
        indices_N: number of each image; with seed and epoch it decides the crop, wherever the row stands.

    Returns:
        int32 [N, 6]: INDEX, TOP, LEFT, HEIGHT, WIDTH, FLIP.
    """
    heights_N, widths_N = heights_N.astype(np.int64), widths_N.astype(np.int64)
    keys_N = _image_keys(indices_N, seed=seed, epoch=epoch)
    rows = np.empty((len(indices_N), 6), np.int32)
    rows[:, INDEX] = indices_N
    rows[:, FLIP] = _uniform(keys_N, 0) < flip_probability
    rows[:, TOP], rows[:, LEFT], rows[:, HEIGHT], rows[:, WIDTH] = _central_boxes(heights_N, widths_N, ratio)
    log_ratio = np.log(ratio)
    pending = np.arange(len(indices_N))
    for attempt in range(NUM_TRIES):
        heights, widths, keys = heights_N[pending], widths_N[pending], keys_N[pending]
        area_u, ratio_u, top_u, left_u = (_uniform(keys, 1 + attempt * DRAWS_PER_TRY + k) for k in range(DRAWS_PER_TRY))
        areas = heights * widths * (scale[0] + (scale[1] - scale[0]) * area_u)
        ratios = np.exp(log_ratio[0] + (log_ratio[1] - log_ratio[0]) * ratio_u)
        box_heights, box_widths = (np.rint(np.sqrt(x)).astype(np.int64) for x in (areas / ratios, areas * ratios))
        fits = (0 < box_heights) & (box_heights <= heights) & (0 < box_widths) & (box_widths <= widths)
        taken = pending[fits]
        rows[taken, TOP] = (top_u * (heights - box_heights + 1))[fits]
        rows[taken, LEFT] = (left_u * (widths - box_widths + 1))[fits]
        rows[taken, HEIGHT], rows[taken, WIDTH] = box_heights[fits], box_widths[fits]
        pending = pending[~fits]
    return rows


def centre_crops(
    heights_N: np.ndarray, widths_N: np.ndarray, indices_N: np.ndarray, *, crop_fraction: float
) -> np.ndarray:
    """The central square whose side is `crop_fraction` of the shorter side, never flipped.

    Resizing the shorter side to ``image_size / crop_fraction`` and cutting the central ``image_size`` square, as timm
    evaluates, cuts the same square up to rounding.

    Returns:
        int32 [N, 6]: INDEX, TOP, LEFT, HEIGHT, WIDTH, FLIP.
    """
    heights_N, widths_N = heights_N.astype(np.int64), widths_N.astype(np.int64)
    sides_N = np.maximum(1, np.rint(crop_fraction * np.minimum(heights_N, widths_N)).astype(np.int64))
    tops_N, lefts_N = (np.rint((x - sides_N) / 2) for x in (heights_N, widths_N))
    columns = (indices_N, tops_N, lefts_N, sides_N, sides_N, np.zeros(len(indices_N)))
    return np.stack(columns, axis=1).astype(np.int32)
