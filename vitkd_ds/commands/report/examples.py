"""Validation images for which student and teacher name different classes, with both answers."""

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report.answers import OUTCOMES, Answers
from vitkd_ds.commands.report.html import Html, element, section
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import DataConfig

NUM_IMAGES = 16
SMALL_PIXELS = 64
"""Up to this size images are stored without loss, and enlarged pixel by pixel."""
WRONG = "the student is wrong"


def examples(result: Result, own: Answers) -> Html:
    """The section of images: up to NUM_IMAGES, spread evenly over those in question; where the images cannot be read
    here, a sentence in their place."""
    title = "Where student and teacher disagree" if own.teacher is not None else "Where the student is wrong"
    outcomes, about = _outcomes(own)
    candidates = np.sort(np.concatenate([rows for rows in outcomes.values()]))
    if not len(candidates):
        return section("images", title, element("p", about))
    # Neither the first, which are of few classes, nor the clearest: spread evenly, they say what is usual.
    number = min(NUM_IMAGES, len(candidates))
    chosen = candidates[np.arange(number) * len(candidates) // number]
    about += f" {number} of them, spread evenly over their order in the file."
    try:
        pixels = read_pixels(result, own, own.image[chosen])
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        parts = [element("p", f"The images cannot be shown: {error}", class_="warn")]
    else:
        of_row = {row: outcome for outcome, rows in outcomes.items() for row in rows.tolist()}
        figures = [_figure(own, row, of_row[row], image) for row, image in zip(chosen.tolist(), pixels)]
        parts = [*_controls(outcomes), element("div", *figures, class_="images")]
    return section("images", title, element("p", about), *parts)


def _outcomes(own: Answers) -> tuple[dict[str, np.ndarray], str]:
    """Outcome -> rows of the images in question, and a sentence that counts them."""
    if own.teacher is None:
        wrong = (~own.right()).nonzero()[0]
        return {
            "wrong": wrong
        }, f"There is no teacher. The student gets {len(wrong):,} of {len(own.label):,} images wrong."
    outcomes = own.disagreements()
    count = sum(map(len, outcomes.values()))
    split = ", ".join(f"{OUTCOMES[outcome]}: {len(rows):,}" for outcome, rows in outcomes.items())
    return outcomes, f"For {count:,} of {len(own.label):,} images the two models name different classes ({split})."


def read_pixels(result: Result, own: Answers, numbers: np.ndarray) -> np.ndarray:
    """Decode validation images by their numbers in the file, cut as they were evaluated: uint8 [images, size, size, 3].

    Raises:
        ValueError: they are not the images that were evaluated, or cannot be decoded.
        OSError: they cannot be read.
    """
    # Slow: FFCV or torchvision, where there are images to show.
    from vitkd_ds.data.images import open_images
    from vitkd_ds.data.order import SAMPLE_DTYPE

    data = replace(from_dict(DataConfig, result.config["run"]["data"]), num_workers=1)
    images = open_images(data, split="val", seed=0, micro_batch_size=len(numbers), classes=tuple(own.classes))
    stored = (result.config.get("images") or {}).get("val")
    if stored != images.fingerprint:
        raise ValueError(f"data.val must be what was evaluated, found other images in {data.val}: put them back")
    samples = np.zeros(len(numbers), SAMPLE_DTYPE)
    samples["index"] = numbers
    pixels_BHWC, status_B = images.decode(samples)
    if status_B.any():
        raise ValueError(images.reason(int(numbers[status_B.argmax()]), int(status_B.max())))
    return np.array(pixels_BHWC)


def _controls(outcomes: dict[str, np.ndarray]) -> list[Html]:
    if len(outcomes) == 1:
        return []
    boxes = [
        element("label", element("input", type="radio", name="outcome", data_outcome=key, checked=key == "all"), text)
        for key, text in {"all": "all", **OUTCOMES}.items()
    ]
    return [element("div", *boxes, class_="controls")]


def _figure(own: Answers, row: int, outcome: str, pixels_HWC: np.ndarray) -> Html:
    truth = own.classes[own.label[row]]
    lines = [element("strong", truth)]
    for role in ("student", "teacher") if own.teacher is not None else ("student",):
        answer, probability = getattr(own, role)[row], getattr(own, f"{role}_probability")[row]
        sign = "up" if answer == own.label[row] else "down"
        lines.append(
            element("div", f"{role}: ", element("span", own.classes[answer], class_=sign), f" {probability:.2f}")
        )
    caption = element("figcaption", *lines, element("div", f"image {own.image[row]:,}", class_="soft"))
    is_small = max(pixels_HWC.shape) <= SMALL_PIXELS
    picture = element(
        "img", src=_uri(pixels_HWC), alt=f"{truth}: {OUTCOMES.get(outcome, WRONG)}", class_="small" if is_small else ""
    )
    return element("figure", picture, caption, data_outcome=outcome)


def _uri(pixels_HWC: np.ndarray) -> str:
    """An image as the text of a link: PNG if it is small, else JPEG."""
    kind = "png" if max(pixels_HWC.shape) <= SMALL_PIXELS else "jpeg"
    content = io.BytesIO()
    Image.fromarray(pixels_HWC).save(content, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
