"""How far a student without a classifier agrees with its teacher: linear CKA and cosine of their features."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitkd_ds.engine import ranks
from vitkd_ds.models.features import Features
from vitkd_ds.train.calibrate import Sums

Watch = Callable[[Features, Features], dict[str, Tensor]]

IMAGES = 32
"""Images of which the tokens are held in fp64 at a time."""


class Agreement:
    """Linear CKA of student and teacher, of pooled features and of patch tokens, over all images of all ranks, and
    the means of further metrics, such as the cosine where there are adapters between the two widths.

    Only sums of products travel between the ranks, in fp64, so the result is that of all features at once. All ranks
    must make it, and `add` the same number of times.

    Args:
        watch: further metrics of a micro-batch, each as `vitkd_ds.losses.part.LossPart.metrics` returns them.
    """

    def __init__(self, watch: Sequence[Watch] = ()) -> None:
        self._watch = watch
        self._watched: dict[str, Tensor] = {}
        self._num_images = torch.zeros((), dtype=torch.float64)
        self._sums: dict[str, Sums] = {}
        self._student_dim = 0

    def add(self, student: Features, teacher: Features, is_real_B: Tensor) -> None:
        """Add the features of a micro-batch, but for the rows that are only padding. Collective at the first call.

        Args:
            student, teacher: pooled_BD [B, Ds] and [B, Dt], final_BPD [B, P, Ds] and [B, P, Dt], any float dtype; where
                the numbers of patches differ, patch tokens are left out of the result.
            is_real_B: bool.
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
        """`cka` of the pooled features and, where student and teacher have as many patches, `cka_patches` of the patch
        tokens: 0 to 1, where 1 is the same features up to a rotation and a scale. Then the means over all images of the
        watched metrics. Collective."""
        means_and_covariances = {name: sums.mean_and_covariance() for name, sums in self._sums.items()}
        found = {name: cka(covariance, self._student_dim) for name, (_, covariance) in means_and_covariances.items()}
        if self._watched:
            *sums, count = ranks.sum_over_ranks(torch.stack([*self._watched.values(), self._num_images])).tolist()
            found |= {name: value / count for name, value in zip(self._watched, sums)}
        return found


def _joined(pair: tuple[Tensor, Tensor], rows: slice | Tensor) -> Tensor:
    return torch.cat([features[rows].double() for features in pair], dim=-1)


def cka(covariance_DD: Tensor, student_dim: int) -> float:
    """Compute ||C_st||^2 / (||C_ss|| ||C_tt||), Frobenius norms of the blocks of a covariance.

    Args:
        covariance_DD: of [student's features, teacher's features], fp64.
        student_dim: how many of its channels are the student's.

    Returns:
        0 to 1; 0 if one of the two has the same features for all images.

    **Source**: Kornblith et al., ICML 2019 (arXiv 1905.00414), section 3.
    """
    own, other = slice(None, student_dim), slice(student_dim, None)
    cross, student, teacher = covariance_DD[own, other], covariance_DD[own, own], covariance_DD[other, other]
    norms = student.norm() * teacher.norm()
    return (cross.square().sum() / norms).item() if norms > 0 else 0.0
