"""The last three lines of a run: numbers, the student's file, and a command that works."""

import json
import shlex
import shutil

import pytest

from vitkd_ds.commands.ending import ending
from vitkd_ds.commands.report import report
from vitkd_ds.train.statistics import wilson_interval


@pytest.fixture
def folder(tmp_path, whole_run):
    """A finished distilled run in a separate folder."""
    shutil.copytree(whole_run, tmp_path / "runs" / "my run")
    return tmp_path / "runs" / "my run"


def change(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def write_plain(folder, name="plain", **settings):
    """A copy of a run that has no teacher and lower accuracy."""
    plain = folder.parent / name
    shutil.copytree(folder, plain)
    change(plain, "config.json", lambda config: config["run"].update({"teacher": None, "recipe": "p", **settings}))
    lines = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["val_top1"] = 6.25
    (plain / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return plain


def test_accuracy_with_its_interval_the_student_and_a_command_that_works(folder, tmp_path):
    accuracy, student, following = ending(folder).splitlines()
    top1 = json.loads((folder / "summary.json").read_text())["student_top1"]
    low, high = wilson_interval(64, round(top1 * 64 / 100))
    assert accuracy == f"accuracy: {top1:.2f} % top-1 on 64 images, 95 % interval {low:.2f} to {high:.2f}"
    assert student == f"student: {folder}/student.safetensors" and (folder / "student.safetensors").is_file()
    words = shlex.split(following)
    assert words[:3] == ["next:", "vitkd-ds", "report"] and report(*words[3:])


def test_the_difference_from_a_plain_neighbour_run_with_otherwise_equal_settings(folder):
    for name, settings in {"a": {"seed": 5}, "b": {"epochs": 9}}.items():
        write_plain(folder, name, **settings)
    (folder.parent / "unfinished").mkdir()
    assert "points" not in ending(folder)
    plain = write_plain(folder)
    accuracy, _, following = ending(folder).splitlines()
    top1 = json.loads((folder / "summary.json").read_text())["student_top1"]
    assert accuracy.endswith(f"; {top1 - 6.25:+.2f} points over {plain} (no teacher)")
    assert shlex.split(following)[3:] == [str(folder), str(plain)]
    assert "points" not in ending(plain)


def test_a_run_without_labels_describes_its_features(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if not key.startswith("val_top")} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(folder, "summary.json", lambda summary: summary.update({"cka": 0.98765, "knn_top1": 81.234}))
    assert ending(folder).splitlines()[0] == "features: k-NN top-1 81.23 %, CKA with the teacher 0.9877"
