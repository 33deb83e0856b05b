"""Compute crop boxes from the image size and, in training, from random numbers of `draws`.

FFCV itself draws crops in its decoder threads, with generators seeded by the operating system, so two runs never use
the same crops. Here, the boxes are computed beforehand from (seed, epoch, image, repeat), and the decoder uses no
random numbers. A crop therefore does not depend on the thread or rank that decodes the image, or on restarts.
"""

import math
from dataclasses import dataclass

import numpy as np

from vitkd_ds.config.image_sizes import Phases
from vitkd_ds.data.draws import CROP_DRAWS, epoch_of, sample_keys, uniform

BILINEAR, BICUBIC = 0, 1
"""Values of the field `filter` of a crop: Pillow's filters of these names, which antialias when shrinking an image."""
FILTERS = {"bilinear": (BILINEAR,), "bicubic": (BICUBIC,), "random": (BILINEAR, BICUBIC)}
"""Maps data.interpolation to filters. One of them is chosen for each image."""

CROP_FIELDS = "index repeat flip filter top left height width resized_height resized_width window_top window_left"
CROP_DTYPE = np.dtype([(name, "<i4") for name in CROP_FIELDS.split()])
"""Crop of one image of a micro-batch, in pixels. `CropRow` in `csrc/decode.h` has the same fields.

The decoder takes image `index` of the file, crops the box (top, left, height, width), and resizes it to resized_height
x resized_width with `filter`. From the result, it crops a square of the loader's size with the top left corner at
(window_top, window_left). If `flip` is 1, it flips the square left to right.
"""

NUM_TRIES = 10
"""Maximum number of boxes to draw for an image; if none fits, the central box is used, as in torchvision."""
FLIP_DRAW, FILTER_DRAW, FIRST_BOX_DRAW, DRAWS_PER_TRY = CROP_DRAWS, CROP_DRAWS + 1, CROP_DRAWS + 2, 4


def _central_boxes(heights_N: np.ndarray, widths_N: np.ndarray, ratio: tuple[float, float]) -> tuple[np.ndarray, ...]:
    """Return each image's largest central box with width / height within `ratio`: tops, lefts, heights, widths.

    As in torchvision, this box is used if all random boxes of an image are too large.
    """
    ratio_N = widths_N / heights_N
    box_heights_N = np.where(ratio_N < ratio[0], np.rint(widths_N / ratio[0]), heights_N)
    box_widths_N = np.where(ratio_N > ratio[1], np.rint(heights_N * ratio[1]), widths_N)
    box_heights_N, box_widths_N = (np.maximum(sides_N.astype(np.int64), 1) for sides_N in (box_heights_N, box_widths_N))
    return (heights_N - box_heights_N) // 2, (widths_N - box_widths_N) // 2, box_heights_N, box_widths_N


@dataclass(frozen=True)
class TrainCrops:
    """Random flips, and random crops with the distribution of torchvision's RandomResizedCrop.

    The area of a box, as a fraction of the image's area, is uniform in `scale`. Its width / height is log-uniform in
    `ratio`. If ten random boxes do not fit into the image, the largest central box within `ratio` is used.
    """

    seed: int
    size: int
    """Height and width of the cropped and resized image, in pixels."""
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip_probability: float
    interpolation: str
    """Resize filter: bilinear, bicubic, or random (timm's default), which chooses one of the two for each image."""
    phases: Phases | None = None
    """Sizes of the images in each epoch, at most `size`; None always uses `size`."""

    def size_of(self, samples: np.ndarray) -> int:
        """Return the height and width of the crops of samples of one epoch, in pixels."""
        return self.phases.size_at(epoch_of(samples)) if self.phases else self.size

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Draw a crop for each sample; return CROP_DTYPE [N].

        Args:
            samples: `vitkd_ds.data.order.SAMPLE_DTYPE` [N], all of the same epoch.
            heights_N, widths_N: height and width of each sample's image, in pixels.
        """
        heights_N, widths_N = heights_N.astype(np.int64), widths_N.astype(np.int64)
        keys_N = sample_keys(samples, seed=self.seed)
        rows = np.zeros(len(samples), CROP_DTYPE)
        rows["index"] = samples["index"]
        rows["repeat"] = samples["repeat"]
        rows["flip"] = uniform(keys_N, FLIP_DRAW) < self.flip_probability
        filters = np.array(FILTERS[self.interpolation])
        rows["filter"] = filters[(uniform(keys_N, FILTER_DRAW) * len(filters)).astype(np.int64)]
        rows["resized_height"] = rows["resized_width"] = self.size_of(samples)
        rows["top"], rows["left"], rows["height"], rows["width"] = _central_boxes(heights_N, widths_N, self.ratio)
        # Use the first drawn box that fits into the image. Most images need one try, so later tries have few images.
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
        """Draw a box for each image; return heights and widths in pixels, and positions of top and left in [0, 1).

        A position is a fraction of the box's range of movement: 0 is at the image's top or left edge.
        """
        first = FIRST_BOX_DRAW + attempt * DRAWS_PER_TRY
        area_u, ratio_u, top_u, left_u = (uniform(keys_N, first + k) for k in range(DRAWS_PER_TRY))
        low, high = np.log(self.ratio)
        areas = areas_N * (self.scale[0] + (self.scale[1] - self.scale[0]) * area_u)
        ratios = np.exp(low + (high - low) * ratio_u)
        box_heights, box_widths = (np.rint(np.sqrt(x)).astype(np.int64) for x in (areas / ratios, areas * ratios))
        return box_heights, box_widths, top_u, left_u


def val_interpolation(interpolation: str) -> str:
    """Return the resize filter for validation: data.interpolation, but bicubic instead of "random", as in timm."""
    return "bicubic" if interpolation == "random" else interpolation


@dataclass(frozen=True)
class CentreCrops:
    """timm's evaluation crops: resize the shorter side to ``floor(size / crop_fraction)``, then crop the centre.

    As in torchvision, the length of the longer side is truncated to whole pixels, and the position of the central
    square is rounded half to even. The pixels therefore equal the pixels that published accuracies were measured with.
    """

    size: int
    crop_fraction: float
    interpolation: str

    def size_of(self, samples: np.ndarray) -> int:
        """Return the height and width of the crops, in pixels."""
        return self.size

    def rows(self, samples: np.ndarray, heights_N: np.ndarray, widths_N: np.ndarray) -> np.ndarray:
        """Compute a crop for each sample, without random numbers. Arguments and result are as in `TrainCrops.rows`."""
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
