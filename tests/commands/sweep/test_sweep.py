"""The sweep: real runs over seeds, the table against their files and scipy, and no run trained twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats

from tests.conftest import run_command
from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.sweep.curves import curve_of, draw
from vitkd_ds.commands.sweep.members import _name, members_of
from vitkd_ds.commands.sweep.run import run_missing
from vitkd_ds.commands.sweep.table import markdown, rows_of

SMALL = [
    "--max_steps=20",
    "--optim.warmup_epochs=0.001",
    "--data.max_val_images=500",
    "--global_batch_size=16",
    "--micro_batch_size_per_gpu=16",
    "--eval_every_epochs=0.01",
]
SWEEP = ["vitkd-ds", "sweep", "--recipes", "demo_plain", "--grid.optim.lr=1e-3,2e-2", *SMALL]
WITHOUT_LABELS = {"data.labels": "ignore", "data.num_classes": "0", "losses.ce.weight": "0", "losses.nkd.weight": "0"}
NAMES = ["demo_plain,optim.lr=1e-3", "demo_plain,optim.lr=2e-2"]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def rows_in(folder):
    return list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["run"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, demo_cache):
    """A sweep of two settings over two seeds, two jobs at a time; its folder and output."""
    folder = tmp_path_factory.mktemp("sweep") / "of" / "mine"
    return folder, run_command(*SWEEP, "--seeds=2", "--jobs=2", f"--workdir={folder}", cwd=folder.parents[1])


@pytest.mark.slow
def test_every_setting_is_trained_with_every_seed_and_all_numbers_match_the_files(swept):
    folder, done = swept
    assert done.stdout.rstrip() == (folder / "sweep.md").read_text().rstrip()
    rows = rows_in(folder)
    assert [row["name"] for row in rows] == NAMES
    top1 = {}
    for name, lr in zip(NAMES, (1e-3, 2e-2)):
        runs = [folder / name / f"seed{seed}" for seed in (0, 1)]
        assert [(config_of(run)["seed"], config_of(run)["optim"]["lr"]) for run in runs] == [(0, lr), (1, lr)]
        top1[name] = [summary_of(run)["student_top1"] for run in runs]
    for row in rows:
        values = top1[row["name"]]
        interval = stats.t.interval(0.95, 1, loc=sum(values) / 2, scale=stats.sem(values))
        assert float(row["top1"]) == pytest.approx(sum(values) / 2) and row["seeds"] == "2"
        assert [float(row["low"]), float(row["high"])] == pytest.approx(interval, rel=1e-3, abs=1e-6)
        assert float(row["seconds"]) > 0
    assert rows[0]["difference"] == rows[0]["p"] == ""
    differences = [b - a for a, b in zip(*top1.values())]
    assert float(rows[1]["difference"]) == pytest.approx(sum(differences) / 2)
    assert float(rows[1]["p"]) == pytest.approx(stats.ttest_rel(*reversed(top1.values())).pvalue, rel=1e-6)
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    cpus = re.findall(r" on (\d+) CPUs", done.stderr)
    assert len(cpus) == 4, "four runs were started"


@pytest.mark.slow
def test_only_missing_runs_are_trained(swept):
    folder, _ = swept
    before = {run: (run / "done").stat().st_mtime_ns for run in folder.glob("*/seed?")}
    logs = {log: log.read_text() for log in folder.glob("*/*.log")}
    listed = run_command(*SWEEP, "--seeds=3", f"--workdir={folder}", "--list").stdout.splitlines()
    named = [f"--workdir={folder}/{name}/seed{seed}" for seed in range(3) for name in NAMES]
    assert [line.split()[-1] for line in listed] == named and "--seed=2 " in listed[-1]
    assert not (folder / NAMES[0] / "seed2").exists()
    done = run_command(*SWEEP, "--seeds=3", f"--workdir={folder}")
    assert "4 of 6 runs are finished" in done.stderr and done.stderr.count("seed 2 is finished") == 2
    assert all((run / "done").stat().st_mtime_ns == time for run, time in before.items())
    assert all(log.read_text() == text for log, text in logs.items())
    rows = rows_in(folder)
    assert [row["seeds"] for row in rows] == ["3", "3"]
    other = run_command(*SWEEP, "--seeds=2", f"--workdir={folder}", "--optim.weight_decay=0.5", check=False)
    assert other.returncode == 2 and "optim.weight_decay" in other.stderr, "a finished run of other settings"


def test_a_failed_run_does_not_affect_the_others_and_sets_the_exit_code(tmp_path, demo_cache):
    base = ["vitkd-ds", "sweep", "--recipes", "demo_plain", *SMALL, f"--workdir={tmp_path}", "--seeds=1"]
    # An infinite learning rate is rejected; this one makes the loss nan at the second update.
    done = run_command(*base, "--grid.optim.lr=1e38,1e-3", "--optim.warmup_epochs=0", check=False)
    assert done.returncode == 1 and "1 of 2 runs are not finished" in done.stderr
    log = tmp_path / "demo_plain,optim.lr=1e38" / "seed0.log"
    assert f"failed. See {log}" in done.stderr and "Lower --optim.lr" in log.read_text()
    rows = rows_in(tmp_path)
    assert [row["name"] for row in rows] == ["demo_plain,optim.lr=1e-3"]


def test_a_signal_is_forwarded_once_and_the_same_command_resumes(tmp_path, demo_cache):
    flags = [flag for flag in SMALL if "steps" not in flag] + ["--max_steps=4000", "--log_every_steps=1"]
    command = ["vitkd-ds", "sweep", "--recipes", "demo_plain", "demo", *flags, f"--workdir={tmp_path}", "--seeds=1"]
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DS_ACCELERATOR": "cpu"}
    log = tmp_path / "demo_plain" / "seed0" / "metrics.jsonl"
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "demo_plain seed 0 is stopped by a signal after saving a checkpoint" in said
    assert "stopped after the running jobs saved a checkpoint" in said and not (tmp_path / "demo").exists()
    *_, saved = sorted((log.parent / "checkpoints").glob("step*"))
    assert not (log.parent / "lock").exists() or "in use" not in said
    assert int(saved.name.removeprefix("step")) < 4000


def test_class_folders_are_packed_once_before_the_runs(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(8):
                level = 40 * (name == "b") + number
                Image.new("RGB", (32, 32), (level, 90, 90)).save(tmp_path / split / name / f"{number}.png")
    data = [f"--data.train={tmp_path / 'train'}", f"--data.val={tmp_path / 'val'}", "--data.num_classes=2"]
    size = ["--max_steps=2", "--global_batch_size=4", "--micro_batch_size_per_gpu=4", "--optim.warmup_epochs=0.01"]
    command = ["vitkd-ds", "sweep", "--recipes", "demo_plain", *data, *size, f"--workdir={tmp_path / 'sweep'}"]
    for seeds in (1, 2):
        done = run_command(*command, f"--seeds={seeds}")
        assert rows_in(tmp_path / "sweep")[0]["seeds"] == str(seeds)
    assert "1 of 2 runs are finished" in done.stderr
    assert done.stderr.count("packed earlier from") == 2  # data.train and data.val, not once per run


def test_each_job_has_its_own_cpus_and_one_gpu(monkeypatch):
    from vitkd_ds.commands.sweep import run

    monkeypatch.setattr(os, "listdir", lambda folder: ["nvidia10", "nvidia2", "nvidia0", "nvidiactl", "null"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run._gpus() == ["0", "2", "10"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run._gpus() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert run._gpus() == ["3", "GPU-5"]


def test_runs_are_checked_before_any_starts_and_named_by_their_differences(tmp_path):
    made = members_of(["demo", "demo_plain"], 2, tmp_path, {"grid.augment.mixup_alpha": "0,0.5", "optim.lr": "1e-3"})
    assert [member.seed for member in made] == [0] * 4 + [1] * 4, "stopping early leaves complete seeds"
    assert [member.name for member in made[:2]] == ["demo,augment.mixup_alpha=0", "demo,augment.mixup_alpha=0.5"]
    assert made[1].run.augment.mixup_alpha == 0.5 and made[1].run.optim.lr == 1e-3
    assert made[5].folder == tmp_path / "demo,augment.mixup_alpha=0.5" / "seed1" and made[5].run.seed == 1
    blocks = members_of(["demo"], 1, tmp_path, {"grid.losses.vitkd.blocks": "(0,1),(1,2)"})
    assert [member.run.losses.vitkd.blocks for member in blocks] == [(0, 1), (1, 2)]
    assert list(tmp_path.iterdir()) == []
    names = {"demo": "demo", "runs/x.json": "x", "./x.json": "x", "runs/first/config.json": "first"}
    assert {recipe: _name(recipe) for recipe in names} == names


@pytest.mark.parametrize(
    "recipes, seeds, flags, message",
    [
        (["demo"], 2, {"optim.lrr": "1"}, "--optim.lrr is not an option: did you mean --optim.lr"),
        (["demo"], 2, {"grid.optim.lrr": "1,2"}, "--grid.optim.lrr is not an option: did you mean --grid.optim.lr"),
        (["demo"], 2, {"grid.optim.lr": "1,-2"}, "optim.lr must be a number above 0, got '-2'"),
        (["demo", "demo"], 2, {}, "two runs of the sweep have the same name demo"),
        (["demo"], 2, {"seed": "3"}, "--seed is set by the sweep"),
        (["demo"], 1, {"recipe": "demo_plain"}, "--recipe is set by the sweep"),
        (["demo"], 1, {"grid.workdir": "a,b"}, "--grid.workdir is set by the sweep"),
        (["demo"], 1, {"grid.optim.lr": ""}, "--grid.optim.lr has no values"),
        (["demo"], 0, {}, "needs at least one seed, got 0. Pass --seeds"),
        (["demo"], 1, WITHOUT_LABELS, "demo.* has data.labels=ignore"),
        ([], 1, {}, "needs at least one recipe. Pass --recipes"),
        (["demo"], 1, {"grid.optim.lr": "1", "optim.lr": "2"}, "--optim.lr and --grid.optim.lr are both given"),
    ],
)
def test_invalid_values_are_rejected(tmp_path, recipes, seeds, flags, message):
    with pytest.raises(ValueError, match=message):
        members_of(recipes, seeds, tmp_path, flags)


def test_a_number_of_jobs_below_one_is_rejected(tmp_path):
    done = run_command("vitkd-ds", "sweep", "--recipes", "demo", "--jobs=0", f"--workdir={tmp_path}", check=False)
    assert done.returncode == 2 and "--jobs must be positive" in done.stderr


def result_of(top1, steps=(10, 20), *, num_images=500, fingerprint=7):
    """A finished run with this top-1 in its last evaluation, and one point less per step before it."""
    lines = [
        {"step": step, "val_num_images": num_images, "val_top1": top1 + step - steps[-1], "val_top5": 99.0}
        for step in steps
    ]
    config = {"run": {"global_batch_size": 8}, "plan": {"steps_per_epoch": 10}}
    config["images"] = {"train": 1, "val": fingerprint}
    summary = {"steps": steps[-1], "images_per_s": 32.0}
    return Result(Path("run"), "run", config, lines, lines[-1], summary)


def results_of(top1, **options):
    return {seed: result_of(value, **options) for seed, value in top1.items()}


def test_differences_use_common_seeds_and_one_seed_has_no_interval():
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {1: 5.0, 2: 8.0}
    results = {"a": results_of(a), "none": {}, "b": results_of(b)}
    a, b = rows_of(results)
    assert (a.seeds, a.difference, a.p) == (3, None, None) and (b.seeds, b.difference) == (2, 3.5)
    assert b.p == pytest.approx(stats.ttest_rel([5.0, 8.0], [2.0, 4.0]).pvalue)
    (one,) = rows_of({"x": results_of({0: 1.0})})
    assert (one.low, one.difference_low, one.p) == (None, None, None)
    lines = markdown([a, b]).splitlines()
    assert len({len(line) for line in lines}) == 1 and "+3.50" in lines[3]


def test_the_table_by_hand():
    rows = rows_of({"a": results_of({0: 50.0, 1: 60.0}), "name": {0: result_of(51.0, (10, 30))}})
    assert markdown(rows).splitlines() == [
        "| runs |  n | top-1 % |   95 % interval | difference | 95 % interval |           p | time |",
        "| ---- | -: | ------: | --------------: | ---------: | ------------: | ----------: | ---: |",
        "| a    |  2 |   55.00 | [-8.53, 118.53] |            |               |             |  5 s |",
        "| name |  1 |   51.00 |     n too small |      +1.00 |   n too small | n too small |  8 s |",
    ]
    assert [row.seconds for row in rows] == [5, 7.5]
    unknown = replace(result_of(50.0), summary=None)
    (row,) = rows_of({"a": {0: unknown}})
    assert row.seconds is None and markdown([row]).endswith("|      |")


def test_equal_differences_give_no_p_value():
    first, second, third = {0: 50.2, 1: 60.6, 2: 70.4}, {0: 51.4, 1: 61.8, 2: 71.6}, {0: 51.4, 1: 61.8, 2: 71.8}
    rows = rows_of({"a": results_of(first), "b": results_of(second), "c": results_of(third)})
    assert rows[1].difference == pytest.approx(1.2)
    assert (rows[1].difference_low, rows[1].difference_high, rows[1].p) == (None, None, None)
    assert rows[2].p == pytest.approx(stats.ttest_rel([*third.values()], [*first.values()]).pvalue)
    cells = [[cell.strip() for cell in line.split("|")[5:8]] for line in markdown(rows).splitlines()[2:]]
    assert cells[:2] == [["", "", ""], ["+1.20", "n too small", "n too small"]]
    assert cells[2][1].startswith("[+")
    (row,) = rows_of({"a": results_of({0: 50.0, 1: 50.0})})
    assert (row.top1, row.low, row.high) == (50, None, None)


@pytest.mark.parametrize("others", [{"fingerprint": 8}, {"num_images": 100}])
def test_runs_on_other_validation_images_are_not_paired(others):
    first, second = {0: 50.0, 1: 52.0}, {0: 51.0, 1: 55.0}
    for alike, given in ((True, {}), (False, others)):
        rows = rows_of({"a": results_of(first), "b": results_of(second, **given)})
        assert [row.top1 for row in rows] == [51, 53] and rows[1].low < 53 < rows[1].high
        assert (rows[1].difference, rows[1].has_same_images) == ((2, True) if alike else (None, False))
        assert (rows[1].p is None) is not alike
        assert ("other images" in markdown(rows)) is not alike
    mixed = {0: result_of(51.0), 1: result_of(55.0, **others)}
    assert rows_of({"a": results_of(first), "b": mixed})[1].difference is None


def test_curves_are_means_with_bands_at_epochs_common_to_all_seeds():
    by_seed = {0: result_of(31.0, steps=(10, 20, 30)), 1: result_of(23.0)}
    epochs, means, lows, highs = curve_of(by_seed)
    assert (epochs, means) == ([1.0, 2.0], [12.0, 22.0])
    low, high = stats.t.interval(0.95, 1, loc=12, scale=stats.sem([11.0, 13.0]))
    assert (lows[0], highs[0]) == pytest.approx((low, high), rel=1e-3)
    (axes,) = draw({"first": by_seed, "second": {0: result_of(7.0)}}).axes
    assert [line.get_label() for line in axes.lines] == ["first", "second"]
    assert list(axes.lines[0].get_ydata()) == means and len(axes.collections) == 2
    assert axes.xaxis.get_gridlines()[0].get_visible() and axes.yaxis.get_gridlines()[0].get_visible()
    assert curve_of({}) == ([], [], [], [])
    equal = {0: result_of(20.0), 1: result_of(20.0)}
    assert curve_of(equal) == ([1.0, 2.0], [10, 20], [10, 20], [10, 20])


def test_nothing_starts_if_all_runs_are_finished():
    class Done:
        def is_done(self):
            return True

    assert run_missing([Done(), Done()], jobs=3) == []
