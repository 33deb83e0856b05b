"""Crop boxes: functions of image size and, in training, (seed, epoch, image, repeat).

FFCV draws crops in its decoder threads, from generators seeded by the operating system, so no two runs agree. Here the
decoder receives the boxes and uses no randomness, so results do not depend on the thread, rank or restart that decodes
an image.
"""

import math
from dataclasses import dataclass

import numpy as np

from vitkd_ds.data.draws import CROP_DRAWS, sample_keys, uniform

BILINEAR, BICUBIC = 0, 1
"""Values of a crop's `filter`: Pillow's filters of these names, which are antialiased when shrinking."""
FILTERS = {"bilinear": (BILINEAR,), "bicubic": (BICUBIC,), "random": (BILINEAR, BICUBIC)}
"""data.interpolation to the filters to choose from, per image."""

CROP_FIELDS = "index repeat flip filter top left height width resized_height resized_width window_top window_left"
CROP_DTYPE = np.dtype([(name, "<i4") for name in CROP_FIELDS.split()])
"""Crop of one image of a micro-batch, in pixels. The C struct of `csrc/decode.h` has the same fields.

Take image `index`, crop the box (top, left, height, width) and resize it to resized_height x resized_width with
`filter`. Then crop a square of the loader's size at (window_top, window_left), and flip it left to right if `flip` is
1.
"""

NUM_TRIES = 10
"""Number of boxes drawn before the central box is used, as in torchvision."""
FLIP_DRAW, FILTER_DRAW, FIRST_BOX_DRAW, DRAWS_PER_TRY = CROP_DRAWS, CROP_DRAWS + 1, CROP_DRAWS + 2, 4


def _central_boxes(heights_N: np.ndarray, widths_N: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Return the largest central boxes with width / height within the bounds `ratio`.

    Like torchvision, fall back to them if all random boxes of an image are too large.
    """
    ratio_N = widths_N / heights_N
    box_heights_N = np.where(ratio_N < ratio[0], np.rint(widths_N / ratio[0]), heights_N)
    box_widths_N = np.where(ratio_N > ratio[1], np.rint(heights_N * ratio[1]), widths_N)
    box_heights_N, box_widths_N = (np.maximum(sides_N.astype(np.int64), 1) for sides_N in (box_heights_N, box_widths_N))
    return (heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2, box_heights_N, box_widths_N


@dataclass(frozen=True)
class TrainCrops:
    """Random flips, and random crops with the distribution of torchvision's RandomResizedCrop.

    The area is uniform in `scale`, and width / height is log-uniform in `ratio`. After ten boxes that do not fit, the
    largest central box within `ratio` is used.
    """

    seed: int
    size: int
    """Height and width of the result, in pixels."""
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float
    interpolation: str
    """bilinear, bicubic, or random (one of both per image, timm's default)."""

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Draw the crops of samples of one epoch: CROP_DTYPE [N].

        Args:
            samples: `vitkd_ds.data.order.SAMPLE_DTYPE` [N].
            heights_N, widths_N: sizes of the images in pixels.
        """
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
        # Use the first drawn box that fits into the image. Most images need one try, so later tries are cheap.
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
        """Draw a box's height and width, and the relative position of its top and left in the free space, in [0, 1)."""
        first = FIRST_BOX_DRAW + attempt * DRAWS_PER_TRY
        area_u, ratio_u, top_u, left_u = (uniform(keys_N, first + k) for k in range(DRAWS_PER_TRY))
        low, high = np.log(self.ratio)
        areas = areas_N * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_u)
        ratios = np.exp(low + (high - low) * ratio_u)
        box_heights, box_widths = (np.rint(np.sqrt(x)).astype(np.int64) for x in (areas / ratios, areas * ratios))
        return box_heights, box_widths, top_u, left_u


def val_interpolation(interpolation: str) -> str:
    """Return the filter of evaluation crops for data.interpolation; "random" gives bicubic, as in timm."""
    return "bicubic" if interpolation == "random" else interpolation


@dataclass(frozen=True)
class CentreCrops:
    """timm's evaluation crops: resize the shorter side to ``floor(size / crop_fraction)``, then crop the centre.

    As in torchvision, the longer side is truncated to whole pixels, and the window's corner is rounded half to even. So
    pixels equal those used for published accuracies.
    """

    size: int
    crop_fraction: float
    interpolation: str

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Compute the crops of samples, with the arguments of `TrainCrops.rows`; they do not depend on the epoch."""
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
