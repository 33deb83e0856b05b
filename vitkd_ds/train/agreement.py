"""Similarity (CKA) between the features of a student without a classifier and of its teacher."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitkd_ds.engine import ranks
from vitkd_ds.models.features import Features
from vitkd_ds.train.calibrate import Sums

Watch = Callable[[Features, Features], dict[str, Tensor]]

IMAGES = 32
"""Number of images whose features are converted to fp64 at once, to limit memory use."""


class Agreement:
    """Linear CKA between student and teacher over all ranks' images, for pooled features and for patch tokens.

    The class also averages further metrics of loss terms, such as the cosine similarity after an adapter. Ranks
    exchange only sums in fp64, but the result equals CKA over the features of all ranks together. Every rank must
    create an instance and call `add` the same number of times.

    Args:
        watch: functions that return further per-image metrics, such as `vitkd_ds.losses.part.LossPart.metrics`.
    """

    def __init__(self, watch: Sequence[Watch] = ()) -> None:
        self._watch = watch
        self._watched: dict[str, Tensor] = {}
        self._num_images = torch.zeros((), dtype=torch.float64)
        self._sums: dict[str, Sums] = {}
        self._student_dim = 0

    def add(self, student: Features, teacher: Features, is_real_B: Tensor) -> None:
        """Add the features of one micro-batch, without its padding rows. The first call is collective.

        Args:
            student, teacher: features of any float dtype: pooled_BD with shapes [B, Ds] and [B, Dt], and final_BPD with
                shapes [B, P, Ds] and [B, P, Dt]. If the models have different numbers of patches, final_BPD is ignored.
            is_real_B: bool; True for images, False for padding rows.
        """
        pairs = {"cka": (student.pooled_BD, teacher.pooled_BD)}
        if student.final_BPD.shape[1] == teacher.final_BPD.shape[1]:
            pairs["cka_patches"] = (student.final_BPD, teacher.final_BPD)
        self._student_dim = student.pooled_BD.shape[1]
        real = is_real_B.nonzero().flatten()
        self._num_images = self._num_images.to(is_real_B.device) + len(real)
        for metrics in self._watch:
            for name, value_B in metrics(student, teacher).items():
                self._watched[name] = self._watched.get(name, 0) + value_B[real].double().sum()
        for name, pair in pairs.items():
            if name not in self._sums:
                self._sums[name] = Sums(_joined(pair, slice(IMAGES)))
            for rows in real.split(IMAGES):
                self._sums[name].add(_joined(pair, rows))

    def result(self) -> dict[str, float]:
        """Return `cka`, `cka_patches` and the means of the further metrics. Collective.

        CKA is between 0 and 1, and 1 means that the features are equal up to rotation and scale. `cka_patches` is
        missing if the models have different numbers of patches.
        """
        means_and_covariances = {name: sums.mean_and_covariance() for name, sums in self._sums.items()}
        found = {name: cka(covariance, self._student_dim) for name, (_, covariance) in means_and_covariances.items()}
        if self._watched:
            *sums, count = ranks.sum_over_ranks(torch.stack([*self._watched.values(), self._num_images])).tolist()
            found |= {name: value / count for name, value in zip(self._watched, sums)}
        return found


def _joined(pair: tuple[Tensor, Tensor], rows: slice | Tensor) -> Tensor:
    return torch.cat([features[rows].double() for features in pair], dim=-1)


def cka(covariance_DD: Tensor, student_dim: int) -> float:
    """Compute linear CKA, ||C_st||^2 / (||C_ss|| ||C_tt||), from Frobenius norms of covariance blocks.

    Args:
        covariance_DD: joint covariance of the concatenated student and teacher features, fp64.
        student_dim: number of student channels, which come first.

    Returns:
        A number from 0 to 1. It is 0 if one of the models returns the same features for all images.

    **Source**: Kornblith et al., ICML 2019 (arXiv 1905.00414), section 3.
    """
    own, other = slice(None, student_dim), slice(student_dim, None)
    cross, student, teacher = covariance_DD[own, other], covariance_DD[own, own], covariance_DD[other, other]
    norms = student.norm() * teacher.norm()
    return (cross.square().sum() / norms).item() if norms > 0 else 0.0
