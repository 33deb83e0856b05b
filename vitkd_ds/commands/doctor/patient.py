"""What the checks examine, and what earlier checks leave for later ones."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from vitkd_ds.config.run import Run
from vitkd_ds.data.loader import Loader
from vitkd_ds.train.parts import Models, Parts
from vitkd_ds.train.schedule import BatchSplit

T = TypeVar("T")


class Skipped(Exception):
    """A check cannot be made; the message says why. Raised on all ranks or on none."""


@dataclass
class Patient:
    """A run on this rank. What is None was not found out; it is None on all ranks or on none."""

    run: Run
    device: torch.device
    nodes: list[str] = field(default_factory=list)
    """The name of each rank's node."""
    split: BatchSplit | None = None
    ds_config: dict[str, Any] | None = None
    """The student's DeepSpeed configuration with the run's numbers."""
    models: Models | None = None
    is_teacher_trained: bool = False
    """Whether the teacher has its own weights; random ones stand in for those that are not at hand."""
    num_trained: int | None = None
    """Parameters of the student and the losses."""
    parts: Parts | None = None
    """Both engines, without loaders."""
    images_per_s: float | None = None
    """Images that one rank trains per second, uncompiled; known on GPUs only."""
    loaders: dict[str, Loader] = field(default_factory=dict)
    """By split, where the images could be opened."""

    @property
    def is_gpu(self) -> bool:
        """Whether the engines run on GPUs."""
        return self.device.type == "cuda"


def needed(value: T | None, what: str) -> T:
    """The value that an earlier check left; raises Skipped, which names `what`, if there is none."""
    if value is None:
        raise Skipped(f"needs {what}, which failed above")
    return value
