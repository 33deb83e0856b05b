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
    """Predictions of one evaluation, kept on the device until `result` is called.

    They contain each image's label, and each model's most likely class with its probability. Every rank must create an
    instance and call `add` the same number of times.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._teachers: tuple[str, ...] = ()

    def add(self, student_BK: Tensor, teachers_BK: Mapping[str, Tensor], labels_B: Tensor) -> None:
        """Add a micro-batch of this rank: the student's logits, each teacher's logits by name, and the labels.

        Logits are fp32, labels int64.
        """
        self._teachers = tuple(teachers_BK)
        columns = [labels_B]
        for logits_BK in (student_BK, *teachers_BK.values()):
            probability_B, best_B = logits_BK.softmax(1).max(1)
            columns += [best_B, probability_B]
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))

    def result(self, numbers: np.ndarray) -> dict[str, list[Any]]:
        """Join the predictions of all ranks. Collective.

        Args:
            numbers: for each validation image, its number in the file; int64, in the order of
                `vitkd_ds.data.order.val_share`.

        Returns:
            Lists with one element per image, without padding. `image` contains the image's number in the file, and
            `label` its label. The most likely class is in `student` for the student, in `teacher` for the first
            teacher, and in `teacher/NAME` for other teachers. The same keys with the suffix `_probability` contain the
            probabilities of these classes, 0 to 1.
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
