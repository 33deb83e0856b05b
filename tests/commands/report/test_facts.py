"""The report's text above the curves: progress, numbers, models, settings."""

import json
import os
import re
from types import SimpleNamespace

import pytest

from tests.commands.compare.conftest import change
from tests.commands.report.written import Page, made, written
from vitkd_ds.commands.report import facts


def test_the_speed_of_the_first_run_is_shown_where_it_is_known(runs):
    pace = re.search(
        r'<div class="tile"><b>([\d,]+)</b><span>images/s in training, all ranks', written(runs / "taught")
    )
    summary = json.loads((runs / "taught" / "summary.json").read_text())
    assert pace and int(pace[1].replace(",", "")) == round(summary["images_per_s"])


def test_differences_from_the_recipe_versions_and_starts_are_listed(runs):
    text = written(runs / "plain")
    settings = {row[0]: row[1:] for row in Page(text).tables["settings"][1:]}
    assert settings["optim.lr"] == ["0.0015", "0.002"] and settings["max_steps"] == ["4", "14"]
    assert [*settings] == sorted(settings)
    assert settings["data.train"][0] == "demo" and "workdir" not in settings and "optim.betas" not in settings
    config = json.loads((runs / "plain" / "config.json").read_text())
    for words in (f"torch {config['versions']['torch']}", config["git_commit"], "none: training without a teacher"):
        assert words in text
    starts = [(start["step"], start["ranks"], start["device"]) for start in config["starts"]]
    assert starts == [(0, 1, "cpu")]
    text = written(runs / "taught")
    assert re.search(r"<dt>resumed</dt><dd>step 7, 20[-\d]+ [:\d]+, 1 rank on cpu</dd>", text)
    assert "not stated by timm" in text
    change(runs / "taught", models__teacher__license="cc-by-nc-4.0", run__recipe="gone/config.json")
    text = written(runs / "taught")
    assert "<dd>cc-by-nc-4.0</dd>" in text and "The recipe cannot be read: no run at gone/config.json" in text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (-5, "0 s"),
        (30, "30 s"),
        (119, "119 s"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (7200, "2 hours"),
        (36000, "10 hours"),
    ],
)
def test_the_age_of_a_log_is_given_in_seconds_minutes_or_hours(tmp_path, monkeypatch, seconds, text):
    assert facts._age(made(folder=tmp_path)) == ""
    (tmp_path / "metrics.jsonl").touch()
    os.utime(tmp_path / "metrics.jsonl", (0, 1_000_000))
    monkeypatch.setattr(facts, "time", SimpleNamespace(time=lambda: 1_000_000.0 + seconds))
    assert facts._age(made(folder=tmp_path)) == f"; last log entry {text} before this report"


def test_tiles_show_the_newest_numbers_and_the_step_of_older_ones():
    lines = [
        {"step": 1, "total": 2.0, "images_per_s": 1234.4},
        {"step": 1000, "val_num_images": 400.0, "val_top1": 50.0, "val_top5": 90.0, "val_cka": 0.25},
        {"step": 2000, "val_num_images": 400.0, "val_top1": 75.0, "val_top5": 90.0, "val_agreement": 81.0},
    ]
    models = {"student": {"parameters": 2_500_000, "gflops": 1}, "teacher": {"parameters": 10_000_000, "gflops": 3}}
    assert facts._tiles(made(lines, models=models)) == [
        ("75.00 %", "student top-1 on 400 images, 95 % interval [70.53, 78.99], step 2,000"),
        ("81.00 %", "both models name the same class"),
        ("0.2500", "CKA with the teacher, step 1,000"),
        ("2.50 M", "parameters of the student; the teacher has 4.0 times as many"),
        ("1,234", "images/s in training, all ranks"),
    ]
    models.pop("teacher")
    assert facts._tiles(made(models=models)) == [("2.50 M", "parameters of the student")]
    assert facts._tiles(made()) == []


def test_progress_is_the_newest_step_in_any_record(tmp_path):
    state = facts._state(made([{"step": 1200}, {"step": 1100}], folder=tmp_path))
    assert (state["step"], state["total"], state["of_total"]) == (1200, 2000, "1,200 of 2,000 steps")
    state = facts._state(made([{"step": 1200}], folder=tmp_path, plan={}))
    assert (state["step"], state["total"], state["of_total"]) == (1200, 1200, "1,200 steps")
    assert facts._state(made(folder=tmp_path, plan={}))["total"] == 1, "a bar needs a length"


def test_hardware_and_models_are_described_in_words():
    assert facts._hardware(1, "cpu") == "1 rank on cpu"
    assert facts._hardware(8, None) == "8 ranks on an unknown device"
    cost = {"model": "tiny", "parameters": 5_720_000, "gflops": 2.514}
    text = "tiny, 5.72 M parameters, 2.51 GFLOPs per image, initial weights: "
    assert facts._model({"init": "hub"}, cost) == f"{text}hub"
    assert facts._model({"checkpoint": "x.pt", "init": "hub"}, cost) == f"{text}x.pt"
    assert facts._model({"model_args": {"depth": 2}}, cost).startswith('tiny {"depth": 2}, 5.72 M')
    assert facts._model({"init": ""}, cost) == f"{text}random"
