"""Open an exported student, and predict classes or features of image files."""

import csv
import io
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitkd_ds.commands.compare.table import safe_cell
from vitkd_ds.commands.show import one_line
from vitkd_ds.config.run import DataConfig, Run
from vitkd_ds.config.run_folder import (
    CONFIG,
    EXPORTED,
    find_student,
    read_description,
    read_run,
    read_student,
    run_beside,
    student_files,
    with_found_paths,
)
from vitkd_ds.data.images import crops_of
from vitkd_ds.data.order import SAMPLE_DTYPE
from vitkd_ds.data.sources import NO_LABELS, Source, open_source
from vitkd_ds.data.torchvision import DECODED, TorchvisionImages
from vitkd_ds.models import build
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.fp32 import fp32_products

logger = logging.getLogger(__name__)

MICRO_BATCH = 64
"""Images per forward pass. If there are more images than this, worker processes decode them."""


@dataclass(frozen=True)
class Exported:
    """An exported student."""

    source: str
    """Path given by the user: a run folder, a checkpoint or an exported student."""
    folder: Path
    """Folder with the student's weights and student.json."""
    description: dict[str, Any]
    """Content of student.json."""
    run: Run | None
    """Settings of the run that trained the student; None if the student is not in a run folder."""
    run_folder: Path | None
    """Folder with that run's config.json; None if the student is not in a run folder."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; () if the student has no classifier."""
        return tuple(self.description["classes"])

    def build(self) -> nn.Module:
        """Build the model in fp32 on the CPU."""
        find = partial(find_student, self.source)
        return read_student(find, lambda folder: build.build_exported(self.description, student_files(folder)[0]))

    def model(self) -> nn.Module:
        """Build the model in fp32 on the first GPU, or on the CPU if there is none."""
        return self.build().to(first_device())

    def own_images(self, key: str) -> str:
        """Return the run's setting data.`key`, the path of its images. Raise ValueError if the path does not exist."""
        path = getattr(self.run.data, key)
        entry = f"data.{key} in {self.run_folder / CONFIG}"
        if path != "demo" and not os.path.exists(path):
            option = key.removeprefix("knn_")
            raise ValueError(f"{path}, the {entry}, does not exist. Pass the path of the images as --{option}.")
        logger.info("images: %s (%s)", path, entry)
        return path

    def data(self, val: str, *, num_classes: int, **changes: Any) -> DataConfig:
        """Return data settings for the validation images `val`, cropped as in the student's evaluation.

        `changes` are further settings of the data.
        """
        described = {key: self.description[key] for key in ("image_size", "val_crop_fraction", "interpolation")}
        return DataConfig(**{"train": "", "val": val, "num_classes": num_classes, **described} | changes)


def open_exported(student: str) -> Exported:
    """Open the student of a run folder, a checkpoint or an export. Raise ValueError if there is no student."""
    find = partial(find_student, student)
    folder, description = read_student(find, lambda folder: (folder, read_description(folder, EXPORTED)))
    # The description has architecture and preprocessing; a run's config.json adds data and teacher.
    beside = run_beside(folder)
    run = with_found_paths(read_run(beside), beside) if beside else None
    return Exported(student, folder, description, run, beside)


def load_student(student: str | Path) -> nn.Module:
    """Load the student of a run folder, a checkpoint or an export on the CPU, in fp32 and eval mode.

    Returns:
        A timm model. Its `pretrained_cfg` holds preprocessing and class names.

    Raises:
        ValueError: there is no student at this path.
    """
    return open_exported(str(student)).build().eval()


class Answers(nn.Module):
    """Module that maps normalised images to the student's logits [B, K] or pooled features [B, D]."""

    def __init__(self, model: nn.Module, *, features: bool) -> None:
        super().__init__()
        self.model = model
        self.features = features

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits or features in the model's dtype."""
        if self.features:
            return tap_features(self.model, images_BCHW, ()).pooled_BD
        return self.model(images_BCHW)


def first_device() -> torch.device:
    """Return this machine's first GPU, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def predict(student: str, images: Sequence[str], *, top: int = 5, features: bool = False) -> Iterator[str]:
    """Predict images and yield the output line by line.

    The output is CSV if `images` include a folder or if features are yielded: a header, then one line per image.
    Otherwise, the output is each file's name, followed by its most likely classes and their probabilities. An image
    that cannot be read or decoded is left out, with a warning.

    Args:
        student: a run folder, a checkpoint or an exported student. If it has no classifier, features are yielded.
        images: files, and folders with images at any depth.
        top: number of classes per image.
        features: yield pooled features instead of classes.

    Raises:
        ValueError: the student or an image does not exist, `top` is not positive, or no image can be decoded.
    """
    exported = open_exported(student)
    if top < 1:
        raise ValueError(f"--top must be positive, got {top}")
    features = features or not exported.classes
    top = min(top, len(exported.classes))
    source = _source_of(images)
    num_lines = 0
    as_csv = features or any(os.path.isdir(path) for path in images)
    for name, answer in _answers(exported, source, features=features):
        if features:
            cells = [f"{value:.9g}" for value in answer.tolist()]
            head = [f"feature_{i}" for i in range(len(cells))]
        else:
            likeliest = answer.softmax(0).topk(top)
            found = [(exported.classes[i], f"{part:.4f}") for part, i in zip(*map(Tensor.tolist, likeliest))]
            cells = [cell for pair in found for cell in pair]
            head = [f"{what}_{i}" for i in range(1, top + 1) for what in ("class", "probability")]
        if as_csv and not num_lines:
            yield _csv_line(["image", *head])
        yield _csv_line([name, *cells]) if as_csv else _text(name, found)
        num_lines += 1
    if not num_lines:
        raise ValueError(f"none of the images can be decoded; the first is {images[0]}")


def _source_of(images: Sequence[str]) -> Source:
    """Return a source with the given files, and with all images in the given folders, in the given order.

    Raise ValueError if a path does not exist.
    """
    paths: list[str] = []
    for image in images:
        if os.path.isdir(image):
            paths += open_source(image, labels=NO_LABELS).names
        elif os.path.isfile(image):
            paths.append(image)
        else:
            raise ValueError(f"no image or folder at {image!r}. Check the path.")
    labels = np.zeros(len(paths), np.int64)
    sizes = np.array([os.path.getsize(path) for path in paths])
    return Source("image files", (), labels, paths, sizes, lambda i: Path(paths[i]).read_bytes())


@torch.no_grad()
def _answers(exported: Exported, source: Source, *, features: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each decodable image and the student's output for it, in fp32 on the CPU."""
    crops = crops_of(exported.data("", num_classes=0), split="val", seed=0)
    num_workers = len(os.sched_getaffinity(0))
    images = TorchvisionImages(
        "the images", crops, None, micro_batch_size=MICRO_BATCH, num_workers=num_workers, source=source
    )
    samples = np.zeros(len(source.names), SAMPLE_DTYPE)
    samples["index"] = np.arange(len(samples))
    micro_batches = images.decoded(samples) if len(samples) > MICRO_BATCH else [images.decode(samples)]
    model = exported.model()
    answers = Answers(model, features=features).eval()
    normalization = build.normalization_of(model)
    first = 0
    for images_BHWC, status_B in micro_batches:
        for i in np.flatnonzero(status_B != DECODED):
            logger.warning("skipping an image that %s", images.reason(first + int(i), int(status_B[i])))
        is_there = torch.from_numpy(status_B == DECODED)
        images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).to(first_device())
        with fp32_products(allow_tf32=False):
            found = answers(normalization.apply(images_BCHW, torch.float32)).float().cpu()
        names = source.names[first : first + len(status_B)]
        yield from ((name, answer) for name, answer, there in zip(names, found, is_there) if there)
        first += len(status_B)


def _csv_line(cells: Sequence[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(map(safe_cell, cells))  # makes csv quote cells with \r or \n
    return line.getvalue().removesuffix("\r\n")


def _text(name: str, found: Sequence[tuple[str, str]]) -> str:
    return "\n".join([one_line(name), *(f"  {part}  {one_line(class_name)}" for class_name, part in found)])
