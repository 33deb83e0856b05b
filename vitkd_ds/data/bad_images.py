"""Apply data.on_bad to a micro-batch with images that could not be decoded: raise, or substitute the next image."""

import logging
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

PADDING_LABEL = -1
"""Label of a validation row that must not be counted: it fills a rank up, or its image cannot be decoded."""
MAX_REPLACEMENTS = 100
"""Images tried in place of one that cannot be decoded."""


class BadImages:
    """Handles the images of one split that cannot be decoded.

    Args:
        images: `vitkd_ds.data.images.Images`.
        on_bad: stop or skip.
        is_train: whether the next image that decodes takes the place, as in training; in validation the row is not
            counted.

    Attributes:
        num_skipped: rows so far that were replaced or not counted.
    """

    def __init__(self, images: Any, *, on_bad: str, is_train: bool):
        self._images, self._on_bad, self._is_train, self.num_skipped = images, on_bad, is_train, 0

    def handle(self, samples: np.ndarray, images_BHWC: np.ndarray, labels_B: np.ndarray, status_B: np.ndarray) -> None:
        """Change images and labels in place where the status is not 0 (decoded).

        Raises:
            ValueError: on_bad is stop, or the image is not to blame, or no other decodes either; it names file, image,
                class and reason.
        """
        bad = np.flatnonzero(status_B)
        if not len(bad):
            return
        reasons = "; ".join(self._named(samples[i : i + 1], int(status_B[i])) for i in bad)
        if not set(status_B[bad].tolist()) <= self._images.skippable:
            raise ValueError(f"each image of {self._images.path!r} must be read, but {reasons}: check file and disk")
        if self._on_bad == "stop":
            raise ValueError(
                f"each image of {self._images.path!r} must decode, but {reasons}: copy or pack the file again, or go "
                f"on without the image with --data.on_bad=skip"
            )
        logger.warning("%r: %s; skipped", self._images.path, reasons)
        for i in bad:
            if self._is_train:
                images_BHWC[i], labels_B[i] = self._next_image(samples[i : i + 1])
            else:
                labels_B[i] = PADDING_LABEL
        self.num_skipped += len(bad)

    def _named(self, sample: np.ndarray, status: int) -> str:
        index = int(sample["index"][0])
        name = self._images.classes[self._images.labels[index]]
        return f"image {index} (class {name!r}) {self._images.reason(index, status)}"

    def _next_image(self, sample: np.ndarray) -> tuple[np.ndarray, int]:
        """Find the next image of the file that decodes, cut and flipped by its own draws: pixels and label."""
        other = sample.copy()
        for _ in range(MAX_REPLACEMENTS):
            other["index"] = (other["index"] + 1) % len(self._images.labels)
            images_BHWC, status_B = self._images.decode(other)
            if status_B[0] == 0:
                return images_BHWC[0], int(self._images.labels[other["index"][0]])
        raise ValueError(
            f"one of the {MAX_REPLACEMENTS} images after image {sample['index'][0]} of {self._images.path!r} must "
            f"decode, found none: copy the file again, or pack it again"
        )
