"""The points of the curves, and the marks and bands drawn with them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.commands.compare.conftest import change
from tests.commands.report.written import made
from tests.conftest import metrics_of
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report.curves import (
    MOST_MEANS,
    MOST_POINTS,
    _drawn,
    _shares,
    charts_of,
    marks_of,
    means_of,
    thinned,
)
from vitkd_ds.config.metrics import VAL_METRICS
from vitkd_ds.config.run import as_dict
from vitkd_ds.recipes import build_run


def test_restarts_kept_checkpoints_and_skipped_images_are_marked(runs):
    run = runs / "taught"
    lines = metrics_of(run)
    for line, count in zip([line for line in lines if "total" in line], (0, 0, 2, 2, 5, 0, 1)):
        line["images_skipped"] = count
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (result,) = read_results([str(run)])
    marks = marks_of(result)
    assert [mark["step"] for mark in marks if mark["kind"] == "restart"] == [7]
    kept = [mark["text"] for mark in marks if mark["kind"] == "checkpoint"]
    assert [text.removesuffix(", best") for text in kept] == ["checkpoint step00000007", "checkpoint step00000014"]
    assert sum(text.endswith(", best") for text in kept) == 1
    skipped = [(mark["step"], mark["text"]) for mark in marks if mark["kind"] == "skipped"]
    # A restart resets the count, so a drop is not marked.
    assert skipped == [(3, "2 images skipped so far"), (5, "5 images skipped so far"), (7, "1 images skipped so far")]


def test_every_start_counts_as_a_restart_except_a_first_one_at_step_0():
    def texts(**config):
        return [mark["text"] for mark in marks_of(made(folder="none", **config))]

    assert texts(starts=[{"step": 0, "time": "a"}, {"step": 0, "time": "b"}]) == ["resumed at step 0 b"]
    assert texts(starts=[{"step": 5, "time": "a"}]) == ["resumed at step 5 a"], "an earlier version began the run"
    assert texts(starts=["damaged", {"step": "x"}, {"step": 6}]) == ["resumed at step 6"]
    assert texts(resumed_step=3) == ["resumed at step 3"] and texts(resumed_step=0) == texts() == []


def test_shares_of_the_total_use_the_weights_of_their_step():
    run = build_run("demo")
    losses = replace(run.losses, nkd=replace(run.losses.nkd, weight=2.0, schedule="linear"))
    lines = [{"step": step, "total": 4.0, "ce": 1.0, "nkd": 1.0} for step in (1, 6, 11)]
    shares = _shares(made(lines, run=as_dict(replace(run, losses=losses)), plan={"total_steps": 11}))
    parts = {series.name: series.values for series in shares.series}
    # Weights 2, 1 and 0, as in the update that ends at each step.
    assert parts == {"ce": [25, 25, 25], "nkd": [50, 25, 0]}


def test_the_gradients_healthy_range_follows_the_clipping_limit(runs):
    def zone():
        charts = {chart["key"]: chart for chart in charts_of(read_results([str(runs / "plain")]))}
        return charts["grad_norm"]["zone"]

    assert zone() == (None, 5.0)
    change(runs / "plain", run__optim__clip_grad_norm=1.5)
    assert zone() == (None, 1.5)
    change(runs / "plain", run__optim__clip_grad_norm=0)
    assert zone() is None


def test_every_value_that_a_run_logs_has_its_chart_title_and_unit():
    evaluated = dict.fromkeys((f"val_{name}" for name in VAL_METRICS), 1.0) | {"val_num_images": 4.0}
    trained = {"total": 1.0, "ce": 0.5, "epoch": 1.0, "s_per_step": 0.1, "tflops": 3.0, "data_wait_s": 0.0}
    trained |= {"grad_norm": 1.0, "lr": 0.1, "images_per_s": 9.0, "mfu": 0.3, "memory_gib": 2.0, "images_skipped": 0}
    lines = [{"step": 1} | trained, {"step": 1, "val_images_skipped": 0} | evaluated]
    charts = charts_of([made(lines)])
    assert [(chart["key"], chart["title"], chart["unit"]) for chart in charts] == [
        ("val_top1", "Validation top-1", "%"),
        ("val_agreement", "Agreement with the teacher", "%"),
        ("val_kl", "KL(teacher || student)", "nats"),
        ("val_cka", "CKA with the teacher", ""),
        ("val_cka_patches", "CKA of patch tokens", ""),
        ("val_cosine", "Cosine with the target", ""),
        ("val_cosine_patches", "Cosine of patch tokens", ""),
        ("val_knn_top1", "k-NN top-1", "%"),
        ("total", "Total loss", ""),
        ("ce", "Loss term ce, unweighted", ""),
        ("grad_norm", "Gradient norm before clipping", ""),
        ("lr", "Learning rate", ""),
        ("images_per_s", "Training speed", "images/s"),
        ("data_wait_s", "Waiting for data per step", "s"),
        ("mfu", "Model FLOPs utilisation (MFU)", ""),
        ("memory_gib", "Peak memory of rank 0", "GiB"),
        ("images_skipped", "Images skipped since the start", ""),
        ("val_images_skipped", "Validation images skipped", ""),
    ]
    by_key = {chart["key"]: chart for chart in charts}
    assert [(one["name"], one["dash"]) for one in by_key["val_top1"]["series"]] == [
        ("run", False),
        ("run (teacher)", True),
    ]
    assert by_key["val_top1"]["note"] == "dashed: teacher" and by_key["val_kl"]["note"] == ""
    assert [chart["key"] for chart in charts if chart["is_log"]] == ["grad_norm"]


def test_long_curves_keep_logged_points_with_the_extremes():
    values = np.random.default_rng(0).normal(size=20_000)
    values[777], values[15_003] = 50, -50
    points = [(10 * i, float(value)) for i, value in enumerate(values)]
    kept = thinned(points)
    assert set(kept) <= set(points) and kept == sorted(kept) and len(kept) <= MOST_POINTS
    assert points[777] in kept and points[15_003] in kept and kept[-1] == points[-1]
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


def test_means_cover_equal_intervals_and_only_on_long_curves(runs):
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
    assert [len(_drawn(0, "", points[:number]).means) for number in (200, 201)] == [0, MOST_MEANS]
    assert total()["means"] == [1.5] * MOST_MEANS and total()["mean_steps"][:2] == [2.5, 6.5]
    assert total()["values"] == [line["total"] for line in lines]
