"""Real runs to compare, and helpers that change their folders."""

import csv
import io
import json
import os
import re
import shutil

import pytest
from safetensors.torch import load_file

from tests.conftest import metrics_of, run_several
from vitkd_ds.commands.compare import compare

SEEDS = {"plain": (0, 1, 2), "taught": (3, 1, 0)}
STEPS = 14


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small_beton, demo_cache):
    """Train the runs plain0 plain1 plain2 taught3 taught1 taught0 for two evaluated epochs of 7 steps."""
    folder = tmp_path_factory.mktemp("compared")
    commands = [
        [
            f"--recipe={recipe}",
            "--debug",
            f"--seed={seed}",
            f"--workdir={folder}/{name}{seed}",
            "--max_steps=14",
            f"--data.train={small_beton}",
            "--global_batch_size=8",
            "--eval_every_epochs=1",
            "--checkpoint.every_steps=7",
        ]
        for name, recipe in (("plain", "demo_plain"), ("taught", "demo"))
        for seed in SEEDS[name]
    ]
    assert not any(outcome["refused"] for outcome in run_several(1, folder / "commands", commands))
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    """Return a folder with copies of the runs that a test may change."""
    for path in trained.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
    return tmp_path


def change(run, **values):
    """Set keys of a run's config.json, with `__` for nested keys; keep the file's times."""
    config = json.loads((run / "config.json").read_text())
    for key, value in values.items():
        *parts, last = key.split("__")
        place = config
        for part in parts:
            place = place[part]
        place[last] = value
    times = (run / "config.json").stat()
    (run / "config.json").write_text(json.dumps(config))
    os.utime(run / "config.json", (times.st_atime, times.st_mtime))


def unfinish(run):
    """Turn a run into an unfinished one at step 10, evaluated at step 7, with a truncated last line."""
    for name in ("done", "summary.json", "student.safetensors", "student.json"):
        (run / name).unlink()
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 10]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 14, "val_num_images": 64.0, "val_top1": 99.0, "v']))


def evaluated(run):
    return [line for line in metrics_of(run) if "val_top1" in line][-1]


def table(text):
    """Return an unsplit table as name to the other cells of its row."""
    rows = text.split("\n\n")[1].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in (re.split(" {2,}", row.strip()) for row in rows)}


def rows_of(text):
    return {row["run"]: row for row in csv.DictReader(io.StringIO(text))}


def shown(*folders, **options):
    return compare(*map(str, folders), **{"speed": False} | options)


def num_parameters(run):
    return sum(weight.numel() for weight in load_file(run / "student.safetensors").values())
