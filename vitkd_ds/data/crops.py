"""Where each image is cut: pure functions of the image's size and, in training, of (seed, epoch, image, repeat).

FFCV draws its crops in the decoder threads, from generators that the operating system seeds, so two runs never agree.
Here the decoder is told where to cut, and holds no randomness: nothing depends on which thread, rank or restart decodes
the image.
"""

import math
from dataclasses import dataclass

import numpy as np

from vitkd_ds.data.draws import CROP_DRAWS, sample_keys, uniform

BILINEAR, BICUBIC = 0, 1
"""Values of a crop's `filter`: Pillow's filters of these names, which average over more pixels when they shrink."""
FILTERS = {"bilinear": (BILINEAR,), "bicubic": (BICUBIC,), "random": (BILINEAR, BICUBIC)}
"""data.interpolation -> the filters from which each image's is drawn."""

CROP_FIELDS = "index repeat flip filter top left height width resized_height resized_width window_top window_left"
CROP_DTYPE = np.dtype([(name, "<i4") for name in CROP_FIELDS.split()])
"""One image of a micro-batch. Take image `index`, cut the box (top, left, height, width; pixels), resize it to
resized_height x resized_width with `filter`, cut the square of the loader's size at (window_top, window_left) out of
that, and flip it left to right if `flip` is 1. The C struct of `csrc/decode.h` has the same fields."""

NUM_TRIES = 10
"""Boxes drawn before the central one is taken; torchvision's number."""
FLIP_DRAW, FILTER_DRAW, FIRST_BOX_DRAW, DRAWS_PER_TRY = CROP_DRAWS, CROP_DRAWS + 1, CROP_DRAWS + 2, 4


def _central_boxes(heights_N: np.ndarray, widths_N: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Find the largest central box whose width / height is in `ratio`, which torchvision takes when all tries fail."""
    ratio_N = widths_N / heights_N
    box_heights_N = np.where(ratio_N < ratio[0], np.rint(widths_N / ratio[0]), heights_N)
    box_widths_N = np.where(ratio_N > ratio[1], np.rint(heights_N * ratio[1]), widths_N)
    box_heights_N, box_widths_N = (np.maximum(sides_N.astype(np.int64), 1) for sides_N in (box_heights_N, box_widths_N))
    return (heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2, box_heights_N, box_widths_N


@dataclass(frozen=True)
class TrainCrops:
    """Random flips, and random crops distributed as torchvision's RandomResizedCrop: area uniform in `scale`, width /
    height log-uniform in `ratio`, ten tries, then the largest central box within `ratio`."""

    seed: int
    size: int
    """Height and width of the result, in pixels."""
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float
    interpolation: str
    """bilinear, bicubic, or random: each image one of both, timm's default."""

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Draw the crops of some images of one epoch: CROP_DTYPE [N] from `vitkd_ds.data.order.SAMPLE_DTYPE` [N], and
        the heights and widths of the images in pixels."""
        heights_N, widths_N = heights_N.astype(np.int64), widths_N.astype(np.int64)
        keys_N = sample_keys(samples, seed=self.seed)
        rows = np.zeros(len(samples), CROP_DTYPE)
        rows["index"] = samples["index"]
        rows["repeat"] = samples["repeat"]
        rows["flip"] = uniform(keys_N, FLIP_DRAW) < self.flip_probability
        filters = np.array(FILTERS[self.interpolation])
        rows["filter"] = filters[(uniform(keys_N, FILTER_DRAW) * len(filters)).astype(np.int64)]
        rows["resized_height"] = rows["resized_width"] = self.size
        rows["top"], rows["left"], rows["height"], rows["width"] = _central_boxes(heights_N, widths_N, self.ratio)
        # Each image takes the first drawn box that lies within it. Most need one try, so later tries cost little.
        pending = np.arange(len(samples))
        for attempt in range(NUM_TRIES):
            if len(pending) == 0:
                break
            heights, widths = heights_N[pending], widths_N[pending]
            box_heights, box_widths, top_u, left_u = self._try(keys_N[pending], heights * widths, attempt)
            fits = (0 < box_heights) & (box_heights <= heights) & (0 < box_widths) & (box_widths <= widths)
            taken = pending[fits]
            rows["top"][taken] = (top_u * (heights - box_heights + 1))[fits]
            rows["left"][taken] = (left_u * (widths - box_widths + 1))[fits]
            rows["height"][taken] = box_heights[fits]
            rows["width"][taken] = box_widths[fits]
            pending = pending[~fits]
        return rows

    def _try(self, keys_N: np.ndarray, areas_N: np.ndarray, attempt: int) -> tuple[np.ndarray, ...]:
        """Draw height and width of a box, and where in the room that is left its top and left lie, in [0, 1)."""
        first = FIRST_BOX_DRAW + attempt * DRAWS_PER_TRY
        area_u, ratio_u, top_u, left_u = (uniform(keys_N, first + k) for k in range(DRAWS_PER_TRY))
        low, high = np.log(self.ratio)
        areas = areas_N * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_u)
        ratios = np.exp(low + (high - low) * ratio_u)
        box_heights, box_widths = (np.rint(np.sqrt(x)).astype(np.int64) for x in (areas / ratios, areas * ratios))
        return box_heights, box_widths, top_u, left_u


def val_interpolation(interpolation: str) -> str:
    """The filter of evaluation crops, given data.interpolation: "random" is bicubic there, as in timm."""
    return "bicubic" if interpolation == "random" else interpolation


@dataclass(frozen=True)
class CentreCrops:
    """timm's evaluation crops: the shorter side resized to ``floor(size / crop_fraction)``, then the central square.

    The longer side is cut off to whole pixels and the window's corner rounded half to even, both as torchvision does,
    so the pixels are those of published accuracies.
    """

    size: int
    crop_fraction: float
    interpolation: str

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Compute the crops of some images, with the arguments of `TrainCrops.rows`; the epoch makes no difference."""
        heights_N, widths_N = heights_N.astype(np.int64), widths_N.astype(np.int64)
        shorter = math.floor(self.size / self.crop_fraction)
        shorter_N = np.minimum(heights_N, widths_N)
        rows = np.zeros(len(samples), CROP_DTYPE)
        rows["index"] = samples["index"]
        rows["height"] = heights_N
        rows["width"] = widths_N
        (rows["filter"],) = FILTERS[val_interpolation(self.interpolation)]
        for lengths_N, side, start in ((heights_N, "height", "top"), (widths_N, "width", "left")):
            rows[f"resized_{side}"] = shorter * lengths_N // shorter_N
            rows[f"window_{start}"] = np.rint((rows[f"resized_{side}"] - self.size) / 2)
        return rows
