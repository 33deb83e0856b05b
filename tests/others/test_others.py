"""A third-party package, found only by its entry points, adds a loss, a teacher, a tracker and a source."""

import json
from pathlib import Path

import pytest

from tests.conftest import run_command
from vitkd_ds.config.check import check_run
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.data.sources import open_source
from vitkd_ds.models.hub import check_model_name
from vitkd_ds.recipes import build_run

POINTS = {
    "losses": "pull = extras:PullTerm",
    "teachers": "wide_vit = extras_part:wide_vit",
    "trackers": "lines = extras_part:Lines",
    "sources": "colours = extras_part:COLOURS",
}


def install(site, **changed):
    """Copy the package and its entry-point file to a folder where Python finds installed packages."""
    info = site / "extras-1.0.dist-info"
    info.mkdir(parents=True)
    for name in ("extras.py", "extras_part.py"):
        (site / name).write_text((Path(__file__).parent / name).read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extras\nVersion: 1.0\n")
    groups = [f"[vitkd_ds.{kind}]\n{point}\n" for kind, point in (POINTS | changed).items()]
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def test_its_source_is_packed_and_its_loss_teacher_and_tracker_train(tmp_path):
    environ = {"PYTHONPATH": str(install(tmp_path / "site"))}
    packed, run = tmp_path / "colours.beton", tmp_path / "run"
    done = run_command("vitkd-ds", "pack", "colours://96", packed, **environ)
    assert "96 images in 2 classes" in done.stdout
    flags = {
        "recipe": "demo", "debug": "true", "workdir": run, "data.train": packed, "data.val": packed, "max_steps": 4,
        "data.num_classes": 2, "losses.nkd.weight": 0, "losses.vitkd.weight": 0, "losses.pull.weight": 2,
        "teacher.model": "wide_vit", "teacher.checkpoint": "random", "trackers": "lines",
    }  # fmt: skip
    run_command("python", "train.py", *(f"--{key}={value}" for key, value in flags.items()), **environ)
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in steps if "total" in line]
    assert all(line["total"] == pytest.approx(line["ce"] + 2 * line["pull"], rel=1e-4) for line in trained)
    first, *lines = (run / "lines.txt").read_text().splitlines()
    assert first == "of demo" and [int(line.split()[0]) for line in lines] == [line["step"] for line in steps]
    assert json.loads((run / "config.json").read_text())["models"]["teacher"]["model"] == "wide_vit"


def test_a_stored_run_cannot_name_code(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    stored = as_dict(build_run("demo"))
    for value in ("extras_part:Lines", "lines:", "os:system"):
        with pytest.raises(ValueError, match="trackers must be names of tensorboard"):
            from_dict(Run, stored | {"trackers": [value]})
    for name in ("extras_part:wide_vit", "wide_vit:", "os:system"):
        with pytest.raises(ValueError, match="teacher.model=.* is not a timm model"):
            check_model_name(name, role="teacher")
    with pytest.raises(ValueError, match="student.model=.* is not a timm model"):
        check_model_name("wide_vit", role="student")
    check_model_name("wide_vit", role="teacher")
    check_run(build_run("demo"))


def test_a_source_that_does_not_load_is_named_and_takes_no_option(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(install(tmp_path / "site"))
    assert open_source("colours://4").labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="--split does not apply to 'colours://4'"):
        open_source("colours://4", split="train")
    with pytest.raises(ValueError, match="'other://4' does not exist"):
        open_source("other://4")
    monkeypatch.syspath_prepend(install(tmp_path / "broken", sources="colours = extras_part:NOTHING"))
    with pytest.raises(ValueError, match="colours = extras_part:NOTHING in the entry points vitkd_ds.sources does not"):
        open_source("colours://4")
