"""95 % intervals of a proportion of images and of a mean over seeds, and the paired t-test. Without torch."""

import math
import statistics
from typing import Sequence

NORMAL_95 = 1.96
"""Two-sided 95 % quantile of the normal distribution."""
T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 2 to 30 values, which have 1 to 29 degrees of freedom. Beyond them the
normal one is taken, which is 4 % smaller at 31 values and less at more."""


def wilson_interval(num_images: int, num_right: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion, in percent."""
    part, z2 = num_right / num_images, NORMAL_95 * NORMAL_95
    centre = (part + z2 / (2 * num_images)) / (1 + z2 / num_images)
    half = math.sqrt(part * (1 - part) / num_images + z2 / (4 * num_images**2)) / (1 + z2 / num_images)
    low, high = centre - NORMAL_95 * half, centre + NORMAL_95 * half
    return 100 * max(0.0, low), 100 * min(1.0, high)  # rounding could pass the ends


def paired_interval(num_images: int, num_gained: int, num_lost: int) -> tuple[float, float]:
    """The 95 % interval, in points, of the difference of two models' top-1 on the same images.

    Args:
        num_gained, num_lost: images that only the first, and only the second, answers right.

    **Source**: Agresti and Min, Statistics in Medicine 24 (2005): Wald's interval after half an image more in each of
    the four cells, which is wide enough also where few images, or none, are answered otherwise.
    """
    gained, lost, total = num_gained + 0.5, num_lost + 0.5, num_images + 2
    mean = (gained - lost) / total
    half = NORMAL_95 * math.sqrt((gained + lost) / total - mean * mean) / math.sqrt(total)
    return 100 * (mean - half), 100 * (mean + half)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean of two or more independent values."""
    quantile = T_95[len(values) - 2] if len(values) - 2 < len(T_95) else NORMAL_95
    mean, half = statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def paired_p(differences: Sequence[float]) -> float | None:
    """The two-sided p of Student's paired t-test: how often the mean of two or more differences would be as far from 0,
    were they normal around 0. With t = sqrt(nu) tan(angle) the density is a power of the cosine, which Simpson's rule
    integrates to more digits than are shown. None where all are equal, as steps of a count of images may be."""
    spread, degrees = statistics.stdev(differences), len(differences) - 1
    if not spread:
        return None
    t = statistics.mean(differences) / (spread / math.sqrt(len(differences)))
    angle, steps = math.atan(abs(t) / math.sqrt(degrees)), 2000
    powers = [math.cos(angle * i / steps) ** (degrees - 1) for i in range(steps + 1)]
    integral = angle / steps / 3 * (powers[0] + powers[-1] + 4 * sum(powers[1:-1:2]) + 2 * sum(powers[2:-1:2]))
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    return max(0.0, 1 - 2 * scale * integral)
