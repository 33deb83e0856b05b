"""Progressive resolution: image size and RandAugment strength in each epoch, from data.image_sizes."""

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from vitkd_ds.config.part import Rule

SIZES = Rule(
    lambda text: not text or all(map(re.compile("[1-9][0-9]{0,3}:[1-9][0-9]{0,3}").fullmatch, text.split(","))),
    "SIZE:PARTS pairs of whole numbers separated by commas, such as 96:2,160:4,192:2,224:2",
)


@dataclass(frozen=True)
class Phases:
    """Phases of a run that trains on images of several sizes. Epochs are counted from 0."""

    sizes: tuple[int, ...]
    """Height and width of the training images in each phase, in pixels."""
    ends: tuple[int, ...]
    """Number of the run's epochs that are over at the end of each phase."""

    def size_at(self, epoch: int) -> int:
        """Return the height and width of the training images in an epoch, in pixels."""
        return next((size for size, end in zip(self.sizes, self.ends) if epoch < end), self.sizes[-1])

    def strength_at(self, epoch: int) -> float:
        """Return the factor of RandAugment's magnitude, which rises linearly from 0 (first epoch) to 1 (last epoch)."""
        last = self.ends[-1] - 1
        return min(epoch, last) / last if last else 1.0


def sizes_of(text: str) -> tuple[int, ...]:
    """Return the sizes in a value of data.image_sizes, in pixels."""
    return tuple(size for size, _ in _pairs(text))


def phases_of(text: str, num_epochs: int) -> Phases:
    """Return the phases of a run of `num_epochs` epochs.

    Each phase ends at the epoch end that is nearest to its part of the run. A phase of less than half an epoch may be
    empty (see `check_phases`).
    """
    ends = [*accumulate(parts for _, parts in _pairs(text))]
    return Phases(sizes_of(text), tuple(round(Fraction(num_epochs * end, ends[-1])) for end in ends))


def check_phases(phases: Phases, text: str) -> None:
    """Raise ValueError if a phase has no epoch."""
    for size, (start, end) in zip(phases.sizes, pairwise((0, *phases.ends))):
        if start == end:
            raise ValueError(
                f"data.image_sizes={text} gives size {size} no whole epoch, because the run has {phases.ends[-1]} "
                "epochs. Raise --epochs, or use fewer sizes."
            )


def check_sizes(text: str, image_size: int) -> None:
    """Raise ValueError unless the sizes rise and the last one is data.image_size."""
    sizes = sizes_of(text)
    if any(later <= size for size, later in pairwise(sizes)):
        raise ValueError(f"the sizes in data.image_sizes must rise, got {text}. Put the smallest size first.")
    if sizes and sizes[-1] != image_size:
        raise ValueError(
            f"the last size in data.image_sizes must be data.image_size={image_size}, the size of evaluation and "
            f"export, got {text}. Change one of them."
        )


def _pairs(text: str) -> list[tuple[int, int]]:
    pairs = [pair.split(":") for pair in text.split(",") if pair]
    return [(int(size), int(parts)) for size, parts in pairs]
