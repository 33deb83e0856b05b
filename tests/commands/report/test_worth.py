"""The first tile of a report: the teacher's benefit, or k-NN accuracy for a student without classes."""

import json
import shutil

import numpy as np
import pytest

from tests.commands.compare.conftest import change
from tests.commands.report.written import made, written
from tests.conftest import metrics_of
from vitkd_ds.commands.compare.runs import evaluations
from vitkd_ds.commands.report.answers import Answers
from vitkd_ds.commands.report.page import SHADES, looks_of
from vitkd_ds.commands.report.worth import worth
from vitkd_ds.train.statistics import paired_interval, t_interval_of_differences


def run(name, top1, *, seed=0, teacher=None, val=7, lr=1, is_final=True):
    line = {"step": 9, "val_num_images": 200, "val_top1": top1, "val_top5": 99.0}
    settings = {"seed": seed, "teacher": teacher, "optim": {"lr": lr}, "data": {"train": "t", "val": "v"}}
    found = made(
        [line], name=name, summary={"steps": 9} if is_final else None, run=settings, images={"train": 1, "val": val}
    )
    assert evaluations([line]) == [found.evaluation]
    return found


def taught(name, top1, **options):
    return run(name, top1, teacher={"model": "deit3"}, **options)


def answered(num_right):
    label = np.zeros(200, int)
    return Answers(
        9, ["a", "b"], np.arange(200), label, (np.arange(200) >= num_right).astype(int), np.ones(200), None, None
    )


@pytest.mark.parametrize("is_turned", [False, True])
def test_over_seeds_the_benefit_is_the_mean_over_pairs_in_any_order(is_turned):
    results = [taught("t0", 82.0), taught("t1", 84.0, seed=1), run("p0", 80.0), run("p1", 79.0, seed=1)]
    low, high = t_interval_of_differences([2.0, 5.0])
    number, words = worth(results[::-1] if is_turned else results, [None] * 4)
    assert number == "+3.50 points"
    assert words == (
        f"gain from the teacher: top-1 compared with p0, 95 % interval [{low:+.2f}, {high:+.2f}], mean over 2 seeds"
    )


def test_for_one_seed_the_interval_is_over_images_and_other_settings_are_named():
    results = [taught("t", 80.0), run("p", 75.0, lr=2)]
    low, high = paired_interval(200, 10, 0)
    words = "gain from the teacher: top-1 compared with p, {}seed 0. The runs also differ in optim.lr"
    with_interval = words.format(f"95 % interval [{low:+.2f}, {high:+.2f}], from the images, ")
    assert worth(results, [answered(160), answered(150)]) == ("+5.00 points", with_interval)
    assert worth(results, [answered(160), None]) == ("+5.00 points", words.format(""))
    # Of two runs without a teacher, the one with closer settings is chosen.
    nearer = worth([*results, run("q", 70.0)], [None] * 3)
    assert nearer == ("+10.00 points", "gain from the teacher: top-1 compared with q, seed 0")


@pytest.mark.parametrize("others, why", [
    ([], "add to this report a finished run without a teacher (--teacher none) with the same seed"),
    ([run("p", 70.0, val=8)], "add to this report a finished run without"),
    ([run("p", 70.0, seed=1)], "add to this report a finished run without"),
    ([run("p", 70.0, is_final=False)], "add to this report a finished run without"),
    ([taught("u", 70.0, lr=2)], "add to this report a finished run without"),
])  # fmt: skip
def test_without_a_pair_the_benefit_is_unknown_and_the_tile_says_why(others, why):
    number, words = worth([taught("t", 80.0), *others], [None] * 2)
    assert number == "unknown" and why in words
    assert "a finished run with a teacher" in worth([run("p", 70.0)], [None])[1]
    assert "this run is not finished" in worth([taught("t", 80.0, is_final=False)], [None])[1]


def first_tile(*runs):
    return written(*runs).partition('<div class="tile"><b>')[2].partition("</span>")[0].split("</b><span>")


def test_the_first_tile_shows_the_difference_between_the_runs(runs):
    top1 = [
        [line["val_top1"] for line in metrics_of(runs / name) if "val_top1" in line][-1] for name in ("taught", "plain")
    ]
    number, words = first_tile(runs / "taught", runs / "plain")
    assert number == f"{top1[0] - top1[1]:+.2f} points"
    assert words.startswith("gain from the teacher: top-1 compared with plain, 95 % interval [")
    assert words.endswith("from the images, seed 0. The runs also differ in extended_at_steps, optim.lr")
    assert first_tile(runs / "taught")[0] == "unknown"


def test_for_a_student_without_classes_the_first_tile_is_k_nn(runs):
    lines = [{"step": 2, "val_num_images": 4.0, "val_cka": 0.25, "val_knn_top1": 61.5}]
    (runs / "taught" / "metrics.jsonl").write_text(json.dumps(lines[0]))
    change(runs / "taught", run__data__num_classes=0)
    assert first_tile(runs / "taught") == ["61.50 %", "k-NN top-1, step 2"]
    del lines[0]["val_knn_top1"]
    (runs / "taught" / "metrics.jsonl").write_text(json.dumps(lines[0]))
    assert first_tile(runs / "taught")[0] == "not measured"


def test_runs_that_differ_only_in_the_seed_have_shades_of_one_colour():
    seeds = [taught("t", 80.0, seed=seed) for seed in range(4)]
    looks = looks_of([seeds[0], run("p", 70.0), *seeds[1:]])
    first, plain, *more = [look["colour"] for look in looks]
    assert (first, plain) == ("var(--c0)", "var(--c1)")
    assert len({first, *more}) == len(SHADES) == 3 and all("var(--c0)" in colour for colour in more)
    assert [look["is_dotted"] for look in looks] == [False] * 4 + [True]
    many = looks_of([run("p", 70.0, lr=lr) for lr in range(9)])
    assert [look["colour"] for look in many] == [f"var(--c{i % 8})" for i in range(9)]
    assert [look["is_dotted"] for look in many] == [False] * 8 + [True]


def test_the_boxes_of_runs_show_their_colours(runs):
    shutil.copytree(runs / "plain", runs / "plain1")
    change(runs / "plain1", run__seed=1)
    boxes = written(runs / "plain", runs / "plain1").partition('class="controls runs"')[2].partition("</div>")[0]
    assert boxes.count("--colour:") == boxes.count("var(--c0)") == 2
