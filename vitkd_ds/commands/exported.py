"""Open an exported student: the model and its answers, what is known of it, and the run that it is of."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkd_ds.config.run import DataConfig, Run
from vitkd_ds.config.run_folder import (
    CONFIG,
    DESCRIPTION,
    EXPORTED,
    STUDENT,
    find_student,
    read_json,
    read_run,
    read_student,
)
from vitkd_ds.models import build
from vitkd_ds.models.features import tap_features


@dataclass(frozen=True)
class Exported:
    """An exported student."""

    source: str
    """Run folder, checkpoint or export that it was opened as."""
    folder: Path
    """Where its two files lie."""
    description: dict[str, Any]
    """Content of its student.json."""
    run: Run | None
    """The run that it is of; None outside a run folder."""
    run_folder: Path | None
    """Where the config.json of that run lies."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes in label order; () without a classifier."""
        return tuple(self.description["classes"])

    def build(self) -> nn.Module:
        """Build it in fp32 on the CPU."""
        find = partial(find_student, self.source)
        return read_student(find, lambda folder: build.build_exported(self.description, folder / STUDENT))

    def model(self) -> nn.Module:
        """Build it in fp32 on this machine's first device."""
        return self.build().to(first_device())

    def data(self, val: str, *, num_classes: int, **changes: Any) -> DataConfig:
        """Validation images, cut as the student was evaluated."""
        described = {key: self.description[key] for key in ("image_size", "val_crop_fraction", "interpolation")}
        return DataConfig(**{"train": "", "val": val, "num_classes": num_classes, **described} | changes)


def open_exported(student: str) -> Exported:
    """Find the exported student that a run folder, checkpoint or export means; raises ValueError if there is none."""
    find = partial(find_student, student)
    folder, description = read_student(find, lambda folder: (folder, read_json(folder / DESCRIPTION, EXPORTED)))
    # The student knows its architecture and how it wants its images; the run beside it knows data and teacher.
    beside = [place for place in (folder, folder.parent.parent) if (place / CONFIG).is_file()]
    return Exported(student, folder, description, read_run(beside[0]) if beside else None, next(iter(beside), None))


def load_student(student: str | Path) -> nn.Module:
    """Build the student of a run folder, a checkpoint or an export on the CPU, in fp32 and eval mode: a timm model,
    whose `pretrained_cfg` has its preprocessing and class names. Raises ValueError if there is none."""
    return open_exported(str(student)).build().eval()


class Answers(nn.Module):
    """What a student says of normalised images: its logits [B, K], or its pooled feature [B, D]."""

    def __init__(self, model: nn.Module, *, features: bool) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Compute them in the model's dtype."""
        if self.features:
            return tap_features(self.model, images_BCHW, ()).pooled_BD
        return self.model(images_BCHW)


def first_device() -> torch.device:
    """This machine's first GPU, else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
