"""Predictions of all models for each validation image: class and probability."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.data.bad_images import PADDING_LABEL
from vitkd_ds.engine import ranks

DIGITS = 4
"""Decimal places of a stored probability."""


class Predictions:
    """Predictions of one evaluation, kept on the device: per image the label, and per model class and probability.

    Every rank must create one and call `add` equally often.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._teachers: tuple[str, ...] = ()

    def add(self, student_BK: Tensor, teachers_BK: Mapping[str, Tensor], labels_B: Tensor) -> None:
        """Add a micro-batch of this rank: student logits, teachers' logits by name (fp32) and labels (int64)."""
        self._teachers = tuple(teachers_BK)
        columns = [labels_B]
        for logits_BK in (student_BK, *teachers_BK.values()):
            probability_B, best_B = logits_BK.softmax(1).max(1)
            columns += [best_B, probability_B]
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))

    def result(self, numbers: np.ndarray) -> dict[str, list[Any]]:
        """Join the predictions of all ranks. Collective.

        Args:
            numbers: each validation image's number in its file, int64, in the order of
                `vitkd_ds.data.order.val_share`.

        Returns:
            Lists with one element per image, without padding: `image` (number in its file), `label`, and the most
            likely class of each model as `student`, `teacher` (the first) and `teacher/NAME` (others). The same model
            names with the suffix `_probability` give its probability, 0 to 1.
        """
        mine = torch.cat(self._rows)
        all_rows = mine.new_zeros(len(mine) * ranks.world_size(), mine.shape[1])
        all_rows[ranks.rank() :: ranks.world_size()] = mine  # images are dealt to the ranks in turn
        joined = ranks.sum_over_ranks(all_rows)[: len(numbers)].cpu()
        is_real = joined[:, 0] != PADDING_LABEL
        label, *answers = joined[is_real].T
        found = {"image": numbers[is_real.numpy()].tolist(), "label": label.long().tolist()}
        roles = ["student", *(f"teacher/{name}" if place else "teacher" for place, name in enumerate(self._teachers))]
        for role, best, probability in zip(roles, answers[::2], answers[1::2]):
            found[role] = best.long().tolist()
            found[f"{role}_probability"] = [round(value, DIGITS) for value in probability.tolist()]
        return found
