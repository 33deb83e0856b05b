"""Apply data.on_bad to a micro-batch with images that could not be decoded: raise, or substitute the next image."""

import logging
import time

import numpy as np

from vitkd_ds.config import reading
from vitkd_ds.data.images import Images

logger = logging.getLogger(__name__)

PADDING_LABEL = -1
"""Label of a validation row that must not be counted: it fills a rank up, or its image cannot be decoded."""
MAX_REPLACEMENTS = 100
"""Images tried in place of one that cannot be decoded."""


def handle_bad_images(
    images: Images,
    samples: np.ndarray,
    images_BHWC: np.ndarray,
    labels_B: np.ndarray,
    status_B: np.ndarray,
    *,
    on_bad: str,
    is_train: bool,
) -> int:
    """Change images and labels of a micro-batch in place where the status is not 0 (decoded); return how many. What the
    disk did not give is read again first, a few times.

    Args:
        images: the split that the samples are of.
        on_bad: stop or skip. Skipping puts the next image that decodes in the place in training, and leaves the row
            uncounted in validation.

    Raises:
        ValueError: on_bad is stop, or the image is not to blame, or no other decodes either; it names file, image,
            class and reason.
        Unreadable: the disk failed each time.
    """
    _read_again(images, samples, images_BHWC, status_B)
    bad = np.flatnonzero(status_B)
    if not len(bad):
        return 0
    reasons = "; ".join(
        f"image {index}{_class_of(images, index)} {images.reason(index, status)}"
        for index, status in zip(samples["index"][bad].tolist(), status_B[bad].tolist())
    )
    if not set(status_B[bad].tolist()) <= images.skippable:
        raise ValueError(f"each image of {images.path!r} must be read, but {reasons}: check file and disk")
    if on_bad == "stop":
        raise ValueError(
            f"each image of {images.path!r} must decode, but {reasons}: copy or pack the file again, or go "
            f"on without the image with --data.on_bad=skip"
        )
    logger.warning("%r: %s; skipped", images.path, reasons)
    for i in bad:
        if is_train:
            images_BHWC[i], labels_B[i] = _next_image(images, samples[i : i + 1])
        else:
            labels_B[i] = PADDING_LABEL
    return len(bad)


def _read_again(images: Images, samples: np.ndarray, images_BHWC: np.ndarray, status_B: np.ndarray) -> None:
    """Read the images again that the disk did not give, in place, except where the file has none such any more."""
    for wait_s in (*reading.WAITS_S, None):
        unread = np.flatnonzero(np.isin(status_B, [*images.unread]))
        unread = unread[[images.is_there(index) for index in samples["index"][unread].tolist()]]
        if not len(unread):
            return
        indices = ", ".join(map(str, samples["index"][unread].tolist()))
        if wait_s is None:
            raise reading.Unreadable(
                f"each image of {images.path!r} must be read, but the disk failed at {indices}, {len(reading.WAITS_S)} "
                "times again: check it, and the same command goes on"
            )
        logger.warning("%r: images %s cannot be read: another attempt in %g s", images.path, indices, wait_s)
        time.sleep(wait_s)
        images_BHWC[unread], status_B[unread] = images.decode(samples[unread])


def _class_of(images: Images, index: int) -> str:
    return f" (class {images.classes[images.labels[index]]!r})" if images.classes else ""


def _next_image(images: Images, sample: np.ndarray) -> tuple[np.ndarray, int]:
    """Find the next image of the file that decodes, cut and flipped by its own draws: pixels and label."""
    other = sample.copy()
    place = int(np.searchsorted(images.chosen, sample["index"][0]))
    for step in range(1, MAX_REPLACEMENTS + 1):
        other["index"] = images.chosen[(place + step) % len(images.chosen)]
        images_BHWC, status_B = images.decode(other)
        if status_B[0] == 0:
            return images_BHWC[0], int(images.labels[other["index"][0]])
    raise ValueError(
        f"one of the {MAX_REPLACEMENTS} images after image {sample['index'][0]} of {images.path!r} must "
        f"decode, found none: copy the file again, or pack it again"
    )
