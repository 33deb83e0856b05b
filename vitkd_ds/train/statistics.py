"""95 % confidence intervals of accuracies and of means over seeds, and the paired t-test.

This module does not import torch.
"""

import math
import statistics
from typing import Sequence

NORMAL_95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""
ROUNDING = 2e-5
"""Values count as equal if their range is at most this many percentage points.

metrics.jsonl stores seven digits, so a percentage is exact to 5e-6 points, and the difference of two percentages is
exact to 1e-5 points.
"""


def wilson_interval(num_images: int, num_right: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a proportion, in percent."""
    part = num_right / num_images
    z2 = NORMAL_95 * NORMAL_95
    centre = (part + z2 / (2 * num_images)) / (1 + z2 / num_images)
    half = math.sqrt(part * (1 - part) / num_images + z2 / (4 * num_images**2)) / (1 + z2 / num_images)
    low, high = centre - NORMAL_95 * half, centre + NORMAL_95 * half
    return 100 * max(0.0, low), 100 * min(1.0, high)  # rounding could exceed the limits


def paired_interval(num_images: int, num_gained: int, num_lost: int) -> tuple[float, float]:
    """Return the 95 % interval for the difference of two models' top-1 on the same images.

    The interval is in percentage points, clipped to [-100, 100].

    Args:
        num_gained: number of images that only the first model classifies correctly.
        num_lost: number of images that only the second model classifies correctly.

    **Source**: Agresti and Min, Statistics in Medicine 24 (2005): Wald's interval after adding half an image to each of
    the four counts (both models right, only one of them right, none right). It keeps its coverage even if the models
    differ on few images or none.
    """
    gained, lost, total = num_gained + 0.5, num_lost + 0.5, num_images + 2
    mean = (gained - lost) / total
    half = NORMAL_95 * math.sqrt((gained + lost) / total - mean * mean) / math.sqrt(total)
    return 100 * max(-1.0, mean - half), 100 * min(1.0, mean + half)


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval for the mean of two or more independent percentages.

    Return None if all values are equal, because their variance cannot be estimated from so few values.
    """
    if _are_equal(values):
        return None
    from scipy.special import stdtrit  # training needs this module, but not scipy

    quantile = float(stdtrit(len(values) - 1, 0.975))
    mean = statistics.mean(values)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_interval_of_differences(differences: Sequence[float]) -> tuple[float, float] | None:
    """Return `t_interval` of the differences of pairs of percentages, or None if all differences are equal.

    The interval is in percentage points, clipped to [-100, 100].
    """
    found = t_interval(differences)
    return (max(-100.0, found[0]), min(100.0, found[1])) if found else None


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t-test on two or more differences.

    Like `t_interval`, return None if all differences are equal.
    """
    if _are_equal(differences):
        return None
    t = statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(len(differences)))
    from scipy.special import stdtr  # training needs this module, but not scipy

    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def _are_equal(values: Sequence[float]) -> bool:
    """Return whether the values differ only by rounding, for example if all seeds get equally many images right."""
    return max(values) - min(values) <= ROUNDING
