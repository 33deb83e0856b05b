"""Handle images that cannot be decoded: raise an error or skip them, as data.on_bad says."""

import logging
import time

import numpy as np

from vitkd_ds.config import reading
from vitkd_ds.data.images import Images

logger = logging.getLogger(__name__)

PADDING_LABEL = -1
"""Label of a validation row that must not be counted: a row that only pads a rank's share, or a damaged image."""
MAX_REPLACEMENTS = 100
"""Maximum number of images to try as a substitute for an image that cannot be decoded."""


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
    """Handle the images of a micro-batch that could not be decoded (status other than 0); return their number.

    Images that the disk failed to deliver are first read again, a few times. An image that can then be decoded is not
    counted. The arrays are modified in place.

    Args:
        images: file or folder that contains the images of `samples`.
        on_bad: "stop" raises an error. With "skip", a training image is replaced by the next image that can be decoded,
            and a validation image gets the label `PADDING_LABEL`.

    Raises:
        ValueError: `on_bad` is "stop"; the file or the disk is at fault, not the image; or none of the possible
            substitutes can be decoded.
        Unreadable: the disk failed at every attempt.
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
        raise ValueError(f"{images.path!r} cannot be read completely: {reasons}. Check the file and the disk.")
    if on_bad == "stop":
        raise ValueError(
            f"{images.path!r} has a bad image: {reasons}. Copy or pack the file again, or pass --data.on_bad=skip to "
            "train without the image."
        )
    logger.warning("skipping bad images of %r: %s", images.path, reasons)
    for i in bad:
        if is_train:
            images_BHWC[i], labels_B[i] = _next_image(images, samples[i : i + 1])
        else:
            labels_B[i] = PADDING_LABEL
    return len(bad)


def _read_again(images: Images, samples: np.ndarray, images_BHWC: np.ndarray, status_B: np.ndarray) -> None:
    """Read the images again that the disk failed to deliver, and update the arrays in place.

    Images that the file no longer contains are not read again.
    """
    for wait_s in (*reading.WAITS_S, None):
        unread = np.flatnonzero(np.isin(status_B, [*images.unread]))
        unread = unread[[images.is_there(index) for index in samples["index"][unread].tolist()]]
        if not len(unread):
            return
        indices = ", ".join(map(str, samples["index"][unread].tolist()))
        if wait_s is None:
            raise reading.Unreadable(
                f"the disk failed to read images {indices} of {images.path!r}, even after {len(reading.WAITS_S)} "
                "retries. Check the disk, then rerun the same command to resume."
            )
        logger.warning("cannot read images %s of %r, retrying in %g s", indices, images.path, wait_s)
        time.sleep(wait_s)
        images_BHWC[unread], status_B[unread] = images.decode(samples[unread])


def _class_of(images: Images, index: int) -> str:
    return f" (class {images.classes[images.labels[index]]!r})" if images.classes else ""


def _next_image(images: Images, sample: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the pixels and the label of the next image in the file that can be decoded.

    That image is cropped and flipped as drawn for it in this epoch.
    """
    other = sample.copy()
    place = int(np.searchsorted(images.chosen, sample["index"][0]))
    for step in range(1, MAX_REPLACEMENTS + 1):
        other["index"] = images.chosen[(place + step) % len(images.chosen)]
        images_BHWC, status_B = images.decode(other)
        if status_B[0] == 0:
            return images_BHWC[0], int(images.labels[other["index"][0]])
    raise ValueError(
        f"none of the {MAX_REPLACEMENTS} images after image {sample['index'][0]} of {images.path!r} can be decoded. "
        "Copy the file again, or pack it again."
    )
