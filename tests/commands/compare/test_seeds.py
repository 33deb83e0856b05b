"""Groups of runs, and differences over common seeds, against scipy."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from scipy import stats

from tests.commands.compare.conftest import SEEDS, change, evaluated, rows_of, shown, unfinish
from tests.conftest import metrics_of
from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.seeds import WIDEST, _seeds, _with_value, settings_line


def below(*folders):
    """The lines below the table."""
    return shown(*folders).split("\n\n")[2].splitlines()


def rewrite_top1(run, top1):
    lines = metrics_of(run)
    lines[-1]["val_top1"] = top1
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"student_top1": top1}))


def top1s(folder, name, seeds):
    return [json.loads((folder / f"{name}{seed}" / "summary.json").read_text())["student_top1"] for seed in seeds]


def test_differences_use_common_seeds_and_students_t_interval(runs):
    top1 = {"plain0": 50, "plain1": 53.125, "plain2": 40.625, "taught0": 57.8125, "taught1": 65, "taught3": 61}
    for name, value in top1.items():
        rewrite_top1(runs / name, value)
    groups = [[runs / f"{name}{seed}" for seed in seeds] for name, seeds in SEEDS.items()]
    for number, (name, seeds, ordered) in enumerate(
        [("plain0", (0, 1, 2), "0, 1, 2"), ("taught3", (3, 1, 0), "0, 1, 3")]
    ):
        values = [top1[f"{name[:-1]}{seed}"] for seed in seeds]
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        expected = f"group {number + 1}: {name} and 2 more, seeds {ordered}: mean top-1 {np.mean(values):.2f} %, "
        expected += f"std {np.std(values, ddof=1):.2f}, n = 3, 95 % interval [{low:.2f}, {high:.2f}]"
        assert below(*groups[0], *groups[1])[number] == expected
    pairs = np.array([57.8125 - 50, 65 - 53.125])
    for first, second, sign in ((*groups, 1), (*groups[::-1], -1)):
        low, high = stats.t.interval(0.95, 1, loc=sign * pairs.mean(), scale=stats.sem(pairs))
        expected = (
            f"group 2 - group 1: top-1 {sign * pairs.mean():+.2f} points, 95 % interval [{low:+.2f}, {high:+.2f}], "
        )
        assert below(*first, *second)[2] == expected + "n = 2 pairs, seeds 0, 1"


def test_lines_list_at_most_twelve_seeds_and_short_values():
    assert _seeds(range(12)) == "seeds 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11"
    assert _seeds(range(13)).endswith(", 11 and 1 more") and _seeds([4]) == "seed 4"
    assert _with_value("key", {"key": 20 * "x"}) == f"key={20 * 'x'}"
    assert _with_value("key", {"key": 21 * "x"}) == _with_value("key", {"key": ""}) == "key"


def test_run_wide_settings_come_first_in_a_line_of_at_most_120_characters():
    def group(**settings):
        run = {"data": {"train": "", "val": ""}} | settings
        return {0: Result(Path("x"), "x", {"run": run, "images": {"train": 1, "val": 1}}, [], {}, None)}

    line = settings_line(2, group(a={"b": 1}, z=2, seed=3), group(a={"b": 0}, z=1))
    assert line == "group 2 differs in: z=2, a.b=1"
    for spare, end in ((0, "b=2"), (1, "and 1 more")):
        key = "a" * (WIDEST - len("group 2 differs in: =1, b=2") + spare)
        line = settings_line(2, group(**{key: 1, "b": 2}), group(**{key: 0, "b": 0}))
        assert line.endswith(end) and len(line) == (WIDEST if not spare else len(f"group 2 differs in: {key}=1 {end}"))


def test_one_seed_gives_no_interval_and_no_common_seed_no_difference(runs):
    text = shown(runs / "plain0", runs / "taught0", runs / "taught3")
    (difference,) = np.subtract(top1s(runs, "taught", [0]), top1s(runs, "plain", [0]))
    assert f"group 2 - group 1: top-1 {difference:+.2f} points, seed 0, no interval (only one seed)" in text
    assert "group 1: plain0, seed 0\n" in text
    assert "group 2 - group 1: not compared: no common seed" in shown(runs / "plain0", runs / "taught3")
    assert len(shown(runs / "plain0").split("\n\n")) == 2, "nothing can be compared"


def test_equal_differences_give_no_interval_and_two_seeds_stay_within_100_points(runs):
    for name, top1 in {"plain0": 50.2, "plain1": 60.6, "taught0": 51.4, "taught1": 61.8}.items():
        rewrite_top1(runs / name, top1)
    folders = [runs / name for name in ("plain0", "plain1", "taught0", "taught1")]
    expected = "group 2 - group 1: top-1 +1.20 points, no interval (all values are equal), n = 2 pairs, seeds 0, 1"
    assert below(*folders)[2] == expected
    rewrite_top1(runs / "plain1", 50.2)
    lines = below(*folders)
    assert lines[0].endswith("mean top-1 50.20 %, std 0.00, n = 2, no interval (all values are equal)")
    assert "top-1 +6.40 points, 95 % interval [-59.67, +72.47], n = 2" in lines[2]
    rewrite_top1(runs / "plain1", 10.2)
    assert "top-1 +26.40 points, 95 % interval [-100.00, +100.00], n = 2" in below(*folders)[2]


def test_each_group_is_compared_with_the_first(runs):
    change(runs / "plain2", run__seed=0, run__optim__lr=0.5)
    for name, top1 in (("plain0", 50.0), ("taught0", 60.0), ("plain2", 75.0)):
        rewrite_top1(runs / name, top1)
    lines = below(runs / "plain0", runs / "taught0", runs / "plain2")
    assert lines[3].startswith("group 2 - group 1: top-1 +10.00") and lines[5].startswith(
        "group 3 - group 1: top-1 +25.00"
    )
    assert lines[6] == "group 3 differs in: optim.lr=0.5"


def test_settings_that_affect_learning_split_groups_and_are_named(runs):
    folders = [runs / "plain0", runs / "plain1", runs / "plain2"]
    free = {"run__data__val": "elsewhere", "run__compile": True, "run__resume": "none", "run__workdir": "moved"}
    change(folders[1], run__data__num_workers=7, **free)
    assert {row["group"] for row in rows_of(shown(*folders, csv=True)).values()} == {"1"}
    change(folders[2], run__optim__lr=0.5, run__student__model_args={"depth": 3, "embed_dim": 64, "num_heads": 2})
    assert [row["group"] for row in rows_of(shown(*folders, csv=True)).values()] == ["1", "1", "2"]
    assert "group 2 differs in: optim.lr=0.5, student.model_args\n" in shown(*folders) + "\n"
    text = shown(folders[0], runs / "taught0")
    assert re.search(r"^group 2 differs in: recipe=demo, teacher, losses\.nkd\.weight=1, .* and \d more$", text, re.M)
    assert "teacher.model" not in text and "seed=" not in text
    swapped = shown(runs / "taught0", folders[0])
    assert "group 2 differs in: recipe=demo_plain, teacher=null, " in swapped
    assert max(map(len, text.splitlines())) <= 120


def test_an_extended_run_is_a_separate_group(runs):
    change(runs / "plain1", run__seed=0, extended_at_steps=[7])
    lines = below(runs / "plain0", runs / "plain1")
    assert lines[3] == "group 2 differs in: extended_at_steps=[7]"
    change(runs / "plain1", extended_at_steps=[])
    assert "same settings, images and seed: plain1" in shown(runs / "plain0", runs / "plain1")


def with_images(run, train, val):
    """Change the run's record of its images; None simulates a version that did not store it."""
    config = json.loads((run / "config.json").read_text())
    config.pop("images")
    change_to = {"images": {"train": train, "val": val}} if train else {}
    (run / "config.json").write_text(json.dumps(config | change_to))


def test_runs_on_other_images_are_separate_groups_compared_only_on_equal_validation_images(runs):
    plain, moved, other = runs / "plain0", runs / "plain1", runs / "plain2"
    for run, images in ((plain, (1, 2)), (moved, (1, 2)), (other, (3, 2))):
        with_images(run, *images)
    change(other, run__seed=0)
    change(moved, run__data__train="moved.beton", run__data__val="moved too.beton")
    assert below(plain, moved)[0].startswith("group 1: plain0 and 1 more, seeds 0, 1"), "the same images elsewhere"
    lines = below(plain, other)
    (difference,) = np.subtract(evaluated(other)["val_top1"], [evaluated(plain)["val_top1"]])
    assert lines[2:] == [
        f"group 2 - group 1: top-1 {difference:+.2f} points, seed 0, no interval (only one seed)",
        "group 2 differs in: the images of data.train",
    ]
    with_images(other, 1, 3)
    assert below(plain, other)[2:] == [
        "group 2 - group 1: not compared: the validation images differ",
        "group 2 differs in: the images of data.val",
    ]
    for images, config in (((1, 2), plain), ((None, None), other)):
        with_images(config, *images)
    text = shown(plain, other)
    assert "left out, because an earlier run has the same settings, images and seed: plain2" in text, "by path"
    change(other, run__data__val="elsewhere")
    assert below(plain, other)[3] == "group 2 differs in: the images of data.val"


def test_different_subsets_of_the_validation_images_count_as_different_images(runs):
    plain, part = runs / "plain0", runs / "plain1"
    change(part, run__seed=0, run__data__max_val_images=32)
    lines = metrics_of(part)
    lines[-1]["val_num_images"] = 32
    (part / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert below(plain, part)[2] == "group 2 - group 1: not compared: the validation images differ"
    change(part, run__data__max_val_images=64)
    lines[-1]["val_num_images"] = 64
    (part / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "no difference" not in shown(plain, part)


def test_only_final_results_with_distinct_seeds_enter_the_groups(runs):
    unfinish(runs / "taught0")
    shutil.copytree(runs / "plain0", runs / "again")
    text = shown(runs / "plain0", runs / "again", runs / "taught0", runs / "taught1")
    assert "left out, because they have no evaluation at their last step: taught0" in text
    assert "left out, because an earlier run has the same settings, images and seed: again" in text
    assert "group 2: taught1, seed 1" in text and "not compared: no common seed" in text
