"""The table and the CSV: every number against real runs' files and scipy; errors."""

import json
import os
import re
import shutil

import pytest
from scipy import stats

from tests.commands.compare.conftest import STEPS, change, evaluated, num_parameters, rows_of, shown, table, unfinish
from tests.conftest import metrics_of
from vitkd_ds.commands.compare import speed
from vitkd_ds.commands.compare.runs import read_results


def with_speed(run, *, images_per_s):
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"images_per_s": images_per_s}))


def test_each_number_matches_the_runs_files(runs):
    plain, taught = runs / "plain0", runs / "taught3"
    models = {"student": {"model": "s", "parameters": num_parameters(plain), "tokens": 51, "gflops": 0.0234}}
    change(plain, models=models | {"teacher": None})
    models["teacher"] = {"model": "t", "parameters": 1_205_386, "tokens": None, "gflops": 0.125}
    change(taught, models=models, world_size=3)
    for run, seconds in ((taught, 83.4), (plain, 9000)):
        with_speed(run, images_per_s=STEPS * 8 / seconds)
    text, rows = shown(plain, taught), rows_of(shown(plain, taught, csv=True))
    assert text.startswith("64 validation images\n") and list(table(text)) == list(rows) == ["plain0", "taught3"]
    for run, time, seconds, ranks in ((plain, "2.5 h", 9000, 1), (taught, "83 s", 83.4, 3)):
        cells, row, found = table(text)[run.name], rows[run.name], evaluated(run)
        summary = json.loads((run / "summary.json").read_text())
        wilson = stats.binomtest(round(found["val_top1"] * 0.64), 64).proportion_ci(0.95, method="wilson")
        top1, low, high = map(float, re.findall(r"[\d.]+", cells[0]))
        assert found["step"] == STEPS and top1 == round(summary["student_top1"], 2)
        assert (low, high) == pytest.approx([100 * end for end in wilson], abs=0.006)
        assert cells[1] == f"{summary['student_top5']:.2f}"
        assert cells[4:8] == [f"{num_parameters(run) / 1e6:.2f}", "0.0234", f"{summary['images_per_s']:,.0f}", time]
        assert cells[8:] == [str(ranks), "-", "-"]
        exact = {
            "folder": str(run),
            "step": "14",
            "is_final": "True",
            "num_images": "64",
            "ranks": str(ranks),
            "student_top1_percent": str(found["val_top1"]),
            "student_top5_percent": str(found["val_top5"]),
            "student_parameters": str(num_parameters(run)),
            "student_gflops": "0.0234",
            "training_images_per_s": str(summary["images_per_s"]),
            "student_inference_images_per_s": "",
        }
        assert row | exact == row and float(row["training_time_s"]) == pytest.approx(seconds)
        assert float(row["student_top1_low_percent"]) == pytest.approx(100 * wilson.low, abs=2e-3)
        assert float(row["student_top1_high_percent"]) == pytest.approx(100 * wilson.high, abs=2e-3)
    found, keys = evaluated(taught), ("teacher_top1", "agreement")
    assert table(text)["plain0"][2:4] == ["-", "-"]
    assert table(text)["taught3"][2:4] == [f"{found[f'val_{key}']:.2f}" for key in keys]
    assert [rows["plain0"][f"{key}_percent"] for key in keys] == ["", ""]
    assert [rows["taught3"][f"{key}_percent"] for key in keys] == [str(found[f"val_{key}"]) for key in keys]
    assert [rows["taught3"][f"teacher_{what}"] for what in ("parameters", "gflops")] == ["1205386", "0.125"]
    assert [(row["seed"], row["group"]) for row in rows.values()] == [("0", "1"), ("3", "2")]
    assert rows["plain0"]["teacher_parameters"] == rows["plain0"]["teacher_gflops"] == ""


def test_a_run_folder_named_like_a_formula_is_text_in_the_csv(runs):
    run = (runs / "plain0").rename(runs / "=plain")
    assert [*rows_of(shown(run, csv=True))] == ["'=plain"]


def test_the_training_time_covers_all_starts_and_is_unchanged_by_copying(runs):
    plain = runs / "plain0"
    time = rows_of(shown(plain, csv=True))["plain0"]["training_time_s"]
    os.utime(plain / "done", (0, 0))
    assert rows_of(shown(plain, csv=True))["plain0"]["training_time_s"] == time
    seconds = [line["s_per_step"] for line in metrics_of(plain) if "s_per_step" in line]
    assert 0.5 * STEPS * min(seconds) < float(time) < 2 * STEPS * max(seconds)
    with_speed(plain, images_per_s=None)
    lines = metrics_of(plain)
    (plain / "metrics.jsonl").write_text("".join(json.dumps(line | {"images_per_s": None}) + "\n" for line in lines))
    assert table(shown(plain))["plain0"][7] == "-"


def test_a_run_of_an_older_version_has_no_sizes(runs):
    config = json.loads((runs / "plain0" / "config.json").read_text())
    config.pop("models", None)
    (runs / "plain0" / "config.json").write_text(json.dumps(config))
    assert table(shown(runs / "plain0"))["plain0"][4:6] == ["-", "-"]


def test_fields_missing_from_an_older_run_count_as_their_defaults(runs):
    now, then = (read_results([str(runs / "plain0")])[0] for _ in range(2))
    for key in ("fraction", "classes", "indices"):
        del then.config["run"]["data"][key]
    del then.config["run"]["trackers"]
    assert then.settings == now.settings and "data.fraction" in now.settings
    then.config["run"]["of_another_version"] = 1
    assert then.settings["of_another_version"] == 1


def test_an_unfinished_run_is_marked_with_the_step_of_its_last_whole_evaluation(runs):
    run = runs / "taught1"
    before = {line["step"]: line for line in metrics_of(run) if "val_top1" in line}
    unfinish(run)
    cells = table(shown(run))["taught1"]
    assert cells[0].split()[0] == f"{before[7]['val_top1']:.2f}" and cells[7] == "at step 7"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    last = [line["images_per_s"] for line in logged if "images_per_s" in line][-1]
    row = rows_of(shown(run, csv=True))["taught1"]
    assert row["training_images_per_s"] == str(last) and cells[6] == f"{last:,.0f}"
    assert [row[key] for key in ("step", "is_final", "training_time_s", "group")] == ["7", "False", "", ""]


@pytest.mark.parametrize(
    "damage",
    [
        '{"step": 14, "val_top',
        "null",
        "\ufffd",
        '{"val_top1": 1}',
        '{"step": 14, "val_num_images": 64.0, "val_top1": null, "val_top5": 1.0}',
    ],
)
def test_damaged_lines_are_skipped(runs, damage):
    run = runs / "plain0"
    text = shown(run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], damage, *lines[1:], damage]))
    assert shown(run) == text
    # If the last evaluation is the damaged one, the one shown is not reported as the end of the run.
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-1], damage]))
    assert table(shown(run))["plain0"][7] == "at step 7"


def test_names_are_as_short_as_possible_and_a_wide_table_is_split(runs):
    for place in ("a", "b"):
        shutil.copytree(runs / "plain0", runs / place / "same")
    assert list(table(shown(runs / "a" / "same", runs / "b" / "same", runs / "plain1"))) == [
        "a/same",
        "b/same",
        "plain1",
    ]
    long = runs / ("deit_small_from_deit3_base_" * 2)
    shutil.copytree(runs / "taught0", long)
    text, short = shown(runs / "plain0", long), shown(runs / "plain0", runs / "taught0")
    _, accuracy, cost, *_ = text.split("\n\n")
    cells = [re.split(" {2,}", part.splitlines()[-1])[1:] for part in (accuracy, cost)]
    assert cells[0] + cells[1] == table(short)["taught0"] and max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("width, pieces", [(60, 3), (80, 2), (140, 1)])
def test_the_text_fits_the_terminal_and_each_part_names_the_runs(runs, monkeypatch, width, pieces):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = table(shown(runs / "plain0", runs / "taught0"))
    monkeypatch.setenv("COLUMNS", str(width))
    text = shown(runs / "plain0", runs / "taught0")
    assert max(map(len, text.splitlines())) <= width
    _, *found, below = text.split("\n\n")
    assert len(found) >= pieces and below.startswith("group 1: plain0")
    rows = [re.split(" {2,}", piece.splitlines()[-1]) for piece in found]
    assert {row[0] for row in rows} == {"taught0"} and sum((row[1:] for row in rows), []) == whole["taught0"]


def test_different_numbers_of_images_are_reported(runs):
    lines = metrics_of(runs / "plain1")
    lines[-1]["val_num_images"] = 2000.0
    (runs / "plain1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shown(runs / "plain1", runs / "plain0").startswith("64 to 2,000 validation images\n")


def no_evaluation(run):
    lines = [json.dumps(line) for line in metrics_of(run) if "val_top1" not in line]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 7, "val_top1": 3']))


@pytest.mark.parametrize(
    "spoil, message",
    [
        (shutil.rmtree, "plain1 is not a run folder: it has no config.json"),
        (lambda run: (run / "config.json").unlink(), "plain1 is not a run folder"),
        (lambda run: (run / "config.json").write_text('{"run"'), "plain1/config.json is missing or not valid JSON"),
        (
            lambda run: (run / "config.json").write_text('{"run": {}}'),
            "config.json has no valid run.seed",
        ),
        (lambda run: (run / "config.json").write_text("[]"), "config.json must be a JSON object"),
        (
            lambda run: change(run, plan={}),
            "plain1/config.json has no valid plan.steps_per_epoch, got",
        ),
        (lambda run: change(run, run__data={}), "plain1/config.json has no valid run.data.train"),
        (
            lambda run: change(run, run__teacher=3),
            "plain1/config.json has no valid run.teacher, got 3",
        ),
        (lambda run: change(run, models={}), "plain1/config.json has no valid models.student.parameters"),
        (lambda run: change(run, images=[]), "plain1/config.json has no valid images"),
        (lambda run: (run / "summary.json").write_text("{}"), "plain1/summary.json has no valid steps"),
        (lambda run: (run / "metrics.jsonl").unlink(), "plain1 has no evaluation in"),
        (no_evaluation, "plain1 has no evaluation in metrics.jsonl"),
        (lambda run: (run / "summary.json").unlink(), "plain1/summary.json is missing or not valid JSON"),
    ],
)
def test_a_path_that_is_not_a_run_is_rejected_by_name_before_any_measurement(runs, monkeypatch, spoil, message):
    monkeypatch.setattr(speed, "measure", lambda results: pytest.fail("measured"))
    spoil(runs / "plain1")
    with pytest.raises(ValueError, match=message):
        shown(runs / "plain0", runs / "plain1", speed=True, plot=str(runs / "x.png"))
    assert not (runs / "x.png").exists()


def test_a_folder_given_twice_is_rejected_under_any_path(runs, monkeypatch):
    (runs / "link").symlink_to(runs / "plain0")
    monkeypatch.chdir(runs)
    for other in ("plain0", "plain0/", "./plain0", "plain1/../plain0", "link", runs / "plain0"):
        with pytest.raises(ValueError, match="the run "):
            shown("plain0", "plain1", other)


@pytest.mark.parametrize("numbers, has_column, cells", [((5, 2), False, 9), ((6, 5), True, 10)])
def test_top5_is_left_out_where_five_or_fewer_classes_make_it_certain(runs, numbers, has_column, cells):
    folders = runs / "plain0", runs / "taught3"
    for run, number in zip(folders, numbers, strict=True):
        change(run, run__data__num_classes=number)
    text = shown(*folders)
    assert ("top-5" in text) == has_column and {len(row) for row in table(text).values()} == {cells + 1}
    if has_column:
        found = [table(text)[run.name][1] for run in folders]
        assert found == [f"{evaluated(folders[0])['val_top5']:.2f}", "-"]
