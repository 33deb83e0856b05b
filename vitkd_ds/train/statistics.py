"""95 % intervals of a proportion of images and of a mean over seeds, and the paired t-test. Without torch."""

import math
import statistics
from typing import Sequence

from scipy.special import stdtr, stdtrit

NORMAL_95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""
ROUNDING = 2e-5
"""Widest range of equal values, in points. metrics.jsonl has seven digits, so a percentage is right to 5e-6 points, and
a difference of two to 1e-5."""


def wilson_interval(num_images: int, num_right: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent."""
    part = num_right / num_images
    z2 = NORMAL_95 * NORMAL_95
    centre = (part + z2 / (2 * num_images)) / (1 + z2 / num_images)
    half = math.sqrt(part * (1 - part) / num_images + z2 / (4 * num_images**2)) / (1 + z2 / num_images)
    low, high = centre - NORMAL_95 * half, centre + NORMAL_95 * half
    return 100 * max(0.0, low), 100 * min(1.0, high)  # rounding could pass the ends


def paired_interval(num_images: int, num_gained: int, num_lost: int) -> tuple[float, float]:
    """The 95 % interval, in points, of the difference of two models' top-1 on the same images; within ±100.

    Args:
        num_gained, num_lost: images that only the first, and only the second, answers right.

    **Source**: Agresti and Min, Statistics in Medicine 24 (2005): Wald's interval after half an image more in each of
    the four cells, which is wide enough also where few images, or none, are answered otherwise.
    """
    gained, lost, total = num_gained + 0.5, num_lost + 0.5, num_images + 2
    mean = (gained - lost) / total
    half = NORMAL_95 * math.sqrt((gained + lost) / total - mean * mean) / math.sqrt(total)
    return 100 * max(-1.0, mean - half), 100 * min(1.0, mean + half)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of two or more independent percentages. None where all are equal: n is too
    small to show how they scatter."""
    if _are_equal(values):
        return None
    quantile = float(stdtrit(len(values) - 1, 0.975))
    mean = statistics.mean(values)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_interval_of_differences(differences: Sequence[float]) -> tuple[float, float] | None:
    """`t_interval` of the mean difference of two percentages, in points; within ±100."""
    found = t_interval(differences)
    return (max(-100.0, found[0]), min(100.0, found[1])) if found else None


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's paired t-test: the probability of a mean of two or more differences as far from 0,
    if they were normal around 0. None where all are equal, as for `t_interval`."""
    if _are_equal(differences):
        return None
    t = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _are_equal(values: Sequence[float]) -> bool:
    """Whether values differ by no more than rounding, as the same number of images at each seed does."""
    return max(values) - min(values) <= ROUNDING
