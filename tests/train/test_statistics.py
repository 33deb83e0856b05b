"""95 % intervals against scipy's."""

import pytest
from scipy import stats

from vitkd_ds.train.statistics import NORMAL_95, T_95, t_interval, wilson_interval


def test_wilsons_interval_has_its_textbook_values():
    assert wilson_interval(10, 5) == pytest.approx((23.66, 76.34), abs=0.01)
    assert wilson_interval(20, 0) == pytest.approx((0, 16.11), abs=0.01)
    assert {f"{wilson_interval(count, 0)[0]:.2f}" for count in range(1, 100)} == {"0.00"}, "and never -0.00"
    assert all(wilson_interval(count, count)[1] <= 100 for count in range(1, 100))
    for num_images, num_right in ((1, 1), (7, 3), (2000, 1569), (50_000, 1)):
        expected = stats.binomtest(num_right, num_images).proportion_ci(0.95, method="wilson")
        assert wilson_interval(num_images, num_right) == pytest.approx([100 * end for end in expected], abs=2e-3)


def test_the_quantiles_are_students_and_beyond_30_values_the_normal_one():
    assert len(T_95) == 29 and pytest.approx(stats.norm.ppf(0.975), abs=5e-5) == NORMAL_95
    for freedom, quantile in enumerate(T_95, start=1):
        assert quantile == pytest.approx(stats.t.ppf(0.975, freedom), abs=5.1e-4)


@pytest.mark.parametrize("count", [2, 3, 30, 31, 400])
def test_the_interval_of_a_mean_is_students(count):
    values = [(7 * i % 11) ** 1.5 - 4 for i in range(count)]
    low, high = t_interval(values)
    expected = stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=2e-4 if count <= 30 else 0.05)
    assert (low + high) / 2 == pytest.approx(sum(values) / count)


def test_equal_values_have_an_interval_without_width():
    assert t_interval([2.5, 2.5, 2.5]) == (2.5, 2.5)
