"""95 % intervals and p-values against scipy's, and against mpmath's beta function, which scipy does not use."""

import itertools
from fractions import Fraction

import pytest
from mpmath import betainc
from scipy import stats

from vitkd_ds.train.statistics import (
    NORMAL_95,
    paired_interval,
    paired_p,
    t_interval,
    t_interval_of_differences,
    wilson_interval,
)


def exact_p(t, degrees):
    """Two-sided p of Student's t."""
    return float(betainc(degrees / 2, 0.5, 0, degrees / (degrees + t * t), regularized=True))


def test_wilsons_interval_has_its_textbook_values():
    assert pytest.approx(stats.norm.ppf(0.975), abs=5e-5) == NORMAL_95
    assert wilson_interval(10, 5) == pytest.approx((23.66, 76.34), abs=0.01)
    assert wilson_interval(20, 0) == pytest.approx((0, 16.11), abs=0.01)
    assert {f"{wilson_interval(count, 0)[0]:.2f}" for count in range(1, 100)} == {"0.00"}, "and never -0.00"
    assert all(wilson_interval(count, count)[1] <= 100 for count in range(1, 100))
    for num_images, num_right in ((1, 1), (7, 3), (2000, 1569), (50_000, 1)):
        expected = stats.binomtest(num_right, num_images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(num_images, num_right) == pytest.approx([100 * end for end in expected], abs=2e-3)


def test_a_paired_interval_is_walds_with_four_extra_half_images_and_stays_within_100_points():
    for total in range(1, 12):
        for gained, lost in itertools.product(range(total + 1), repeat=2):
            if gained + lost > total:
                continue
            cells = [Fraction(1, 2) + gained, Fraction(1, 2) + lost, total - gained - lost + 1]
            values = [1, -1, 0]
            mean = sum(cell * value for cell, value in zip(cells, values)) / sum(cells)
            variance = sum(cell * (value - mean) ** 2 for cell, value in zip(cells, values)) / sum(cells)
            half = NORMAL_95 * float(variance / sum(cells)) ** 0.5
            low, high = paired_interval(total, gained, lost)
            assert low == pytest.approx(max(-100, 100 * (float(mean) - half)), abs=1e-9)
            assert high == pytest.approx(min(100, 100 * (float(mean) + half)), abs=1e-9)
            assert -100 <= low < high <= 100


@pytest.mark.parametrize("count", [2, 3, 30, 31, 400])
def test_the_interval_of_a_mean_is_students_t(count):
    values = [(7 * i % 11) ** 1.5 - 4 for i in range(count)]
    low, high = t_interval(values)
    assert (low + high) / 2 == pytest.approx(sum(values) / count)
    error = stats.sem(values)
    assert exact_p((high - low) / 2 / error, count - 1) == pytest.approx(0.05, rel=1e-9)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=error))


def test_an_interval_of_differences_is_students_t_but_never_beyond_100_points():
    assert t_interval_of_differences([1.0, 2.0, 4.0]) == t_interval([1.0, 2.0, 4.0])
    low, high = t_interval([0.0, 20.0])
    assert low < -100 and high > 100 and t_interval_of_differences([0.0, 20.0]) == (-100, 100)


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, -0.2, 0.5], [5.0, 5.1, 4.9, 5.05, 5.2], [1e-3, -1e-3, 2e-3] * 10])
def test_p_comes_from_students_t(values):
    found = stats.ttest_1samp(values, 0)
    assert paired_p(values) == pytest.approx(found.pvalue, rel=1e-9)
    assert paired_p(values) == pytest.approx(exact_p(found.statistic, len(values) - 1), rel=1e-9)


def test_equal_values_give_no_interval_or_p_value():
    for values in ([2.5, 2.5, 2.5], [0.0, 0.0]):
        assert t_interval(values) is t_interval_of_differences(values) is paired_p(values) is None


@pytest.mark.parametrize("num_images", [300, 500, 2000, 50_000])
def test_gains_equal_after_metrics_jsonls_rounding_count_as_equal_and_one_image_more_does_not(num_images):
    def logged(count):
        return float(f"{100 * count / num_images:.7g}")

    gain = num_images // 7
    for start in range(1, 40):
        counts = [start, start + 11, start + 29, start + num_images // 2]
        same = [logged(count + gain) - logged(count) for count in counts]
        assert paired_p(same) is t_interval(same) is None
        other = [*same[:-1], logged(counts[-1] + gain + 1) - logged(counts[-1])]
        assert 0 < paired_p(other) < 1 and t_interval(other)[0] < t_interval(other)[1]
