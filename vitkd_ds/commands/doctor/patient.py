"""What the checks examine, and what earlier checks leave for later ones."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.models.build import PairInfo

T = TypeVar("T")


class Skipped(Exception):
    """A check cannot be made; the message says why. Raised on all ranks or on none."""


@dataclass
class Patient:
    """A run on this rank. What is None was not found out; it is so on all ranks or on none."""

    run: Run
    device: torch.device
    nodes: list[str] = field(default_factory=list)
    """The name of each rank's node."""
    micro_batch_size: int | None = None
    ds_config: dict[str, Any] | None = None
    """The student's DeepSpeed configuration with the run's numbers."""
    student: nn.Module | None = None
    teacher_model: nn.Module | None = None
    is_teacher_trained: bool = False
    """False: random weights stand in for those that are not at hand."""
    pair: PairInfo | None = None
    num_trained: int | None = None
    """Parameters of the student and the losses."""
    teacher: Any = None
    """A `vitkd_ds.engine.teacher.Teacher`."""
    images_per_s: float | None = None
    """That one rank trains, uncompiled; known on GPUs only."""
    loaders: dict[str, Any] = field(default_factory=dict)
    """By split, where the images could be opened."""

    @property
    def node(self) -> str:
        """Where this rank runs."""
        return self.nodes[ranks.rank()]

    @property
    def is_gpu(self) -> bool:
        """Whether the engines run on GPUs."""
        return self.device.type == "cuda"


def needed(value: T | None, what: str) -> T:
    """The value that an earlier check left; raises Skipped, which names `what`, if there is none."""
    if value is None:
        raise Skipped(f"needs {what}, which failed above")
    return value
