"""Validation images where student and teacher disagree, with the predictions of both."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report.answers import OUTCOMES, Answers
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import DataConfig

NUM_IMAGES = 16
SMALL_PIXELS = 64
"""Images up to this height and width are stored losslessly and enlarged without smoothing."""
WRONG = "the student is wrong"


def examples(result: Result, own: Answers) -> dict[str, Any]:
    """Return up to NUM_IMAGES validation images with texts, in the form that page.html reads.

    They are evenly spaced over all images where student and teacher disagree or, without a teacher, where the student
    is wrong. If the images cannot be read on this machine, "figures" is empty and "error" says why.
    """
    outcomes, about = _outcomes(own)
    title = "Where student and teacher disagree" if own.teacher is not None else "Where the student is wrong"
    found: dict[str, Any] = {"title": title, "about": about, "error": "", "choices": {}, "figures": []}
    candidates = np.sort(np.concatenate(list(outcomes.values())))
    if not len(candidates):
        return found
    # Evenly spaced images are typical. The first images have few classes, and the clearest errors would be extreme.
    number = min(NUM_IMAGES, len(candidates))
    chosen = candidates[np.arange(number) * len(candidates) // number]
    found["about"] += f" {number} of these images are shown, evenly spaced over the file."
    try:
        pixels = read_pixels(result, own, own.image[chosen])
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        return found | {"error": str(error)}
    if len(outcomes) > 1:
        found["choices"] = {"all": "all", **OUTCOMES}
    of_row = {row: outcome for outcome, rows in outcomes.items() for row in rows.tolist()}
    found["figures"] = [_figure(own, row, of_row[row], image) for row, image in zip(chosen.tolist(), pixels)]
    return found


def _outcomes(own: Answers) -> tuple[dict[str, np.ndarray], str]:
    """Return the rows of images that may be shown, by outcome, and a sentence with the number of these images."""
    if own.teacher is None:
        wrong = (~own.right()).nonzero()[0]
        text = f"There is no teacher. The student gets {len(wrong):,} of {len(own.label):,} images wrong."
        return {"wrong": wrong}, text
    outcomes = own.disagreements()
    count = sum(map(len, outcomes.values()))
    split = ", ".join(f"{OUTCOMES[outcome]}: {len(rows):,}" for outcome, rows in outcomes.items())
    return outcomes, f"For {count:,} of {len(own.label):,} images the two models predict different classes ({split})."


def read_pixels(result: Result, own: Answers, numbers: np.ndarray) -> np.ndarray:
    """Decode validation images and crop them as in evaluation.

    Args:
        numbers: numbers of the images in the file of validation images.

    Returns:
        uint8 [images, size, size, 3].

    Raises:
        ValueError: the validation images have changed since the evaluation, or an image cannot be decoded.
        OSError: the file cannot be read.
    """
    # Importing FFCV or torchvision is slow, so do it only if there are images to show.
    from vitkd_ds.data.images import open_images
    from vitkd_ds.data.order import SAMPLE_DTYPE

    data = replace(from_dict(DataConfig, result.config["run"]["data"]), num_workers=1)
    images = open_images(data, split="val", seed=0, micro_batch_size=len(numbers), classes=tuple(own.classes))
    stored = (result.config.get("images") or {}).get("val")
    if stored != images.fingerprint:
        raise ValueError(f"the images in {data.val} have changed since the evaluation. Restore the file.")
    samples = np.zeros(len(numbers), SAMPLE_DTYPE)
    samples["index"] = numbers
    pixels_BHWC, status_B = images.decode(samples)
    if status_B.any():
        raise ValueError(images.reason(int(numbers[status_B.argmax()]), int(status_B.max())))
    return np.array(pixels_BHWC)


def _figure(own: Answers, row: int, outcome: str, pixels_HWC: np.ndarray) -> dict[str, Any]:
    roles = ("student", "teacher") if own.teacher is not None else ("student",)
    return {
        "outcome": outcome,
        "about": OUTCOMES.get(outcome, WRONG),
        "truth": own.classes[own.label[row]],
        "number": int(own.image[row]),
        "answers": [
            (role, own.classes[getattr(own, role)[row]], getattr(own, f"{role}_probability")[row]) for role in roles
        ],
        "uri": _uri(pixels_HWC),
        "is_small": max(pixels_HWC.shape) <= SMALL_PIXELS,
    }


def _uri(pixels_HWC: np.ndarray) -> str:
    """Return an image as a data URI. An image of up to SMALL_PIXELS becomes a PNG, a larger one a JPEG."""
    kind = "png" if max(pixels_HWC.shape) <= SMALL_PIXELS else "jpeg"
    content = io.BytesIO()
    Image.fromarray(pixels_HWC).save(content, format=kind, quality=85)  # PNG ignores quality
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
