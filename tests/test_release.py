"""Runs, exports and .beton files of version 0.9 work in every command.

tests/golden/release_0_9.tar.xz holds 24 packed images, a teacher's run, runs with and without that teacher at two
seeds, two exports of `seed0`, and a run that was killed after its checkpoint at step 2 of 4, with the weights that the
whole run had.
"""

import json
import sys
import tarfile

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT, run_command

ARCHIVE = ROOT / "tests" / "golden" / "release_0_9.tar.xz"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """The unpacked archive; paths inside the runs are relative to it."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    Image.new("RGB", (20, 20), "red").save(folder / "red.png")
    return folder


def run(release, *words):
    """Run Python in the release's folder; return stdout."""
    return run_command(sys.executable, *words, cwd=release).stdout


@pytest.mark.parametrize("words, said", [
    (("check", "train.beton"), "16 images"),
    (("eval", "runs/seed0"), "agreement    50.00"),
    (("eval", "exported/timm", "--val", "val.beton", "--teacher", "runs/teacher"), "teacher_top1 100.00"),
    (("predict", "runs/seed0", "red.png"), "dog"),
    (("export", "runs/seed0", "timm"), ""),
    (("compare", "runs/seed0", "runs/seed1", "runs/plain0", "runs/plain1", "runs/half", "--speed", "false"), "seed1"),
    (("report", "runs/seed0", "runs/plain0", "--out", "report.html"), "report.html"),
    (("watch", "runs/seed0"), "top-1"),
    (("show", "train.beton", "--recipe", "runs/seed0"), "show.png"),
    (("plan", "--recipe", "runs/seed0"), "images/s"),
    (("sweep", "--recipes", "runs/seed0", "--seeds", "1", "--list"), "seed"),
])  # fmt: skip
def test_a_command_accepts_artifacts_of_0_9(release, words, said):
    assert said in run(release, "-m", "vitkd_ds", *words)


def test_an_interrupted_run_of_0_9_ends_with_the_same_weights_as_an_uninterrupted_one(release):
    run(release, ROOT / "train.py", "--recipe=runs/half", "--workdir=runs/half")
    ours = load_file(release / "runs/half/student.safetensors")
    whole = load_file(release / "half_final.safetensors")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_timm_loads_a_hugging_face_export_of_0_9(release):
    model = timm.create_model(f"local-dir:{release}/exported/hf", pretrained=True).state_dict()
    student = load_file(release / "runs/seed0/student.safetensors")
    assert model.keys() == student.keys()
    assert all(torch.equal(model[name], student[name]) for name in student)


@pytest.mark.parametrize("option", [
    "--student.init=runs/seed0",
    "--student.init=exported/timm",
    "--teacher.checkpoint=runs/teacher/student.safetensors",
    "--resume=runs/half/checkpoints/step00000002",
])  # fmt: skip
def test_a_run_starts_from_artifacts_of_0_9(release, tmp_path, option):
    run(release, ROOT / "train.py", "--recipe=runs/half", f"--workdir={tmp_path}/run", option)
    assert json.loads((tmp_path / "run/summary.json").read_text())["steps"] == 4
