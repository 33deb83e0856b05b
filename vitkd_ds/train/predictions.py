"""What all models answer for each validation image: their most likely class, and its probability."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.data.bad_images import PADDING_LABEL
from vitkd_ds.engine import ranks

DIGITS = 4
"""Decimals of a probability."""


class Predictions:
    """The answers of an evaluation, kept on the device until it is over: an image's label, and two numbers a model.

    All ranks must make it, and `add` the same number of times.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._teachers: tuple[str, ...] = ()

    def add(self, student_BK: Tensor, teachers_BK: Mapping[str, Tensor], labels_B: Tensor) -> None:
        """Add the logits, fp32, of a micro-batch of this rank, those of teachers by name, and its labels, int64."""
        self._teachers = tuple(teachers_BK)
        columns = [labels_B]
        for logits_BK in (student_BK, *teachers_BK.values()):
            probability_B, best_B = logits_BK.softmax(1).max(1)
            columns += [best_B, probability_B]
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))

    def result(self, numbers: np.ndarray) -> dict[str, list[Any]]:
        """Join the answers of all ranks. Collective.

        Args:
            numbers: int64, of each validation image, in the order of `vitkd_ds.data.order.val_share`, its number in
                its file.

        Returns:
            Lists of the same length, with an element for each image that counts: `image`, its number in its file,
            `label`, `student`, for the first teacher `teacher` and for others `teacher/NAME`, the most likely class of
            each, and with `_probability` behind these names 0..1.
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
