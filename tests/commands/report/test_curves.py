"""The points of curves, and what is marked and shaded beside them."""

import json

import numpy as np
import pytest

from tests.commands.compare.conftest import change
from tests.conftest import metrics_of
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report.curves import MOST_MEANS, MOST_POINTS, charts_of, marks_of, means_of, thinned


def test_marks_are_restarts_kept_checkpoints_and_skipped_images(runs):
    run = runs / "taught"
    lines = metrics_of(run)
    for line, count in zip([line for line in lines if "total" in line], (0, 0, 2, 2, 5, 0, 1)):
        line["images_skipped"] = count
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = read_results([str(run)])
    marks = marks_of(result)
    assert [mark["step"] for mark in marks if mark["kind"] == "restart"] == [7]
    skipped = [(mark["step"], mark["text"]) for mark in marks if mark["kind"] == "skipped"]
    # A restart counts anew, so a lower count is no news.
    assert skipped == [(3, "2 images skipped so far"), (5, "5 images skipped so far"), (7, "1 images skipped so far")]


def test_the_healthy_range_of_the_gradient_is_that_of_the_clipping(runs):
    def zone():
        charts = {chart["key"]: chart for chart in charts_of(read_results([str(runs / "plain")]))}
        return charts["grad_norm"]["zone"]

    assert zone() == (None, 5.0)
    change(runs / "plain", run__optim__clip_grad_norm=1.5)
    assert zone() == (None, 1.5)
    change(runs / "plain", run__optim__clip_grad_norm=0)
    assert zone() is None


def test_long_curves_keep_logged_points_with_the_extremes():
    values = np.random.default_rng(0).normal(size=20_000)
    values[777], values[15_003] = 50, -50
    points = [(10 * i, float(value)) for i, value in enumerate(values)]
    kept = thinned(points)
    assert set(kept) <= set(points) and kept == sorted(kept) and len(kept) <= MOST_POINTS
    assert points[777] in kept and points[15_003] in kept and kept[-1] == points[-1]
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_means_are_of_equal_stretches_and_only_long_curves_have_them(runs):
    points = [(10 * i, float(i * i)) for i in range(1050)]
    means = means_of(points)
    assert len(means) == MOST_MEANS
    first, last = range(0, 10), range(1039, 1050)
    assert means[0] == (np.mean([10 * i for i in first]), np.mean([i * i for i in first]))
    assert means[-1] == pytest.approx((np.mean([10 * i for i in last]), np.mean([i * i for i in last])), rel=1e-5)
    run = runs / "plain"

    def total():
        results = read_results([str(run)], must_be_evaluated=False)
        chart = next(chart for chart in charts_of(results) if chart["key"] == "total")
        return chart["series"][0]

    assert total()["means"] == total()["mean_steps"] == []
    lines = [{"step": step, "total": 1.0 + step % 2} for step in range(1, 401)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert total()["means"] == [1.5] * MOST_MEANS and total()["mean_steps"][:2] == [2.5, 6.5]
    assert total()["values"] == [line["total"] for line in lines]
