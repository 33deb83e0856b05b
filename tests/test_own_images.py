"""docs/images.md, command by command, on photographs made here: from two folders to a distilled student."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT, metrics_of, run_command
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.demo import CLASSES, demo_beton
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.models.build import DEMO_TEACHER
from vitkd_ds.recipes.demo import STUDENT_ARGS, TEACHER_ARGS

PAGE = (ROOT / "docs/images.md").read_text()
SMALL = ["--data.image_size=28", "--global_batch_size=32", "--data.num_workers=1"]
"""The page's sizes are for a GPU. Later options override earlier ones."""


def write_photographs(folder, split, per_class, names=CLASSES):
    """The packaged photographs as JPEGs in class folders."""
    source, _ = open_beton(demo_beton(split))
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in np.flatnonzero(source.labels == label)[:per_class]:
            Image.open(io.BytesIO(source.read(number))).save(folder / name / f"{number}.jpg", quality=95)


def commands():
    """The page's commands, as words."""
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


def options_of(words):
    """Options that make a command of the page small."""
    student = f"--student.model_args={json.dumps(STUDENT_ARGS)}"
    if "train.py" not in words:
        return {"show": SMALL[:1], "doctor": [*SMALL, student]}.get(words[1], [])
    if "hub" in words:
        return [*SMALL, f"--student.model_args={json.dumps(TEACHER_ARGS)}", "--student.init=fetched.safetensors",
                "--epochs=2", "--optim.lr=2e-4"]  # fmt: skip
    return [*SMALL, student, "--epochs=12", "--optim.lr=1e-3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, demo_cache):
    """A folder with photographs, and weights for other classes that seem downloaded from the Hub."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "train.py", place)
    write_photographs(place / "photos" / "train", "train", 100)
    write_photographs(place / "photos" / "val", "val", 100)
    fetched = load_file(DEMO_TEACHER) | {"head.weight": torch.zeros(1000, 128), "head.bias": torch.zeros(1000)}
    save_file(fetched, place / "fetched.safetensors")
    return place


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_leads_to_a_distilled_student_that_beats_its_baseline(place, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = []
    for words in commands():
        done = run_command(*words, *options_of(words), cwd=place, timeout=300)
        said.append(done.stdout + done.stderr)
    summaries = {
        name: json.loads((place / "runs" / name / "summary.json").read_text())
        for name in ("teacher", "plain", "distilled")
    }
    accuracies = {name: summary["student_top1"] for name, summary in summaries.items()}
    assert accuracies["distilled"] > accuracies["plain"] + 2 and accuracies["teacher"] > 80, accuracies
    assert summaries["distilled"]["teacher_top1"] == pytest.approx(accuracies["teacher"], abs=1), "the same teacher"
    teacher_log = next(text for words, text in zip(commands(), said) if "hub" in words)
    assert "fetched.safetensors has 1000 classes, but the data has 10: dropping its classifier" in teacher_log
    run = json.loads((place / "runs/distilled/config.json").read_text())["run"]
    assert run["teacher"]["model"].startswith("deit3_small") and run["teacher"]["model_args"] == TEACHER_ARGS
    assert run["data"]["num_classes"] == 10 and run["optim"]["warmup_fraction"] == 0.05
    table = next(text for words, text in zip(commands(), said) if "compare" in words)
    assert f"{accuracies['distilled']:.2f}" in table and f"{accuracies['plain']:.2f}" in table
    for name in ("curves.png", "look.png"):
        with Image.open(place / name) as picture:
            assert picture.width > 500
    described = json.loads((place / "my_model/student.json").read_text())
    assert described["classes"] == sorted(CLASSES)
    assert (
        load_file(place / "my_model/student.safetensors").keys()
        == load_file(place / "runs/distilled/student.safetensors").keys()
    )
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    answer = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() in CLASSES


SOME = ("cat", "dog", "großer Hund", "猫")
FOLDERS = ["--data.train=photos/train", "--data.val=photos/val"]
STUDENT = f"--student.model_args={json.dumps(STUDENT_ARGS)}"


def test_folders_are_packed_once_and_the_run_knows_their_classes(tmp_path, demo_cache, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copy(ROOT / "train.py", tmp_path)
    write_photographs(tmp_path / "photos" / "train", "train", 10, SOME)
    write_photographs(tmp_path / "photos" / "val", "val", 5, SOME[:3])

    def train(*options, check=True):
        words = [sys.executable, "train.py", "--recipe=images", *SMALL, *FOLDERS, STUDENT, "--max_steps=2", *options]
        return run_command(*words, cwd=tmp_path, check=check)

    first = train("--teacher=none", "--workdir=runs/plain").stderr
    assert "packing photos/train into photos/train.beton; later starts reuse" in first
    assert check_beton(tmp_path / "photos/val.beton").classes == SOME, "training's classes"
    packed = (tmp_path / "photos/train.beton").stat().st_mtime_ns
    again = train("--workdir=runs/again", "--teacher.checkpoint=runs/plain/best").stderr
    assert "using photos/train.beton, packed earlier from photos/train" in again
    assert (tmp_path / "photos/train.beton").stat().st_mtime_ns == packed
    run = json.loads((tmp_path / "runs/again/config.json").read_text())["run"]
    assert (run["data"]["train"], run["data"]["num_classes"]) == ("photos/train.beton", 4)
    assert run["teacher"]["checkpoint"] == "runs/plain/checkpoints/step00000002/student.safetensors"
    assert run["teacher"]["model_args"] == STUDENT_ARGS
    assert {"nkd", "vitkd_mimic"} <= metrics_of(tmp_path / "runs/again")[0].keys()
    Image.new("RGB", (44, 44)).save(tmp_path / "photos/train/cat/new.jpg")
    refused = train("--teacher=none", "--workdir=runs/third", check=False)
    assert refused.returncode == 2 and "has changed since" in refused.stderr
    assert not (tmp_path / "runs/third").exists()


def test_an_exported_student_has_the_umasks_mode_and_preprocessing_for_timm(whole_run, tmp_path):
    mask = os.umask(0)
    os.umask(mask)
    run_command("vitkd-ds", "export", whole_run, tmp_path / "out")
    files = [whole_run / "student.safetensors", *(tmp_path / "out").iterdir()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    made = json.loads((tmp_path / "out" / "student.json").read_text())
    model = timm.create_model(made["model"], **made["args"])
    found = timm.data.resolve_model_data_config(model)
    assert found == {
        "input_size": [3, 28, 28], "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    assert model.pretrained_cfg["label_names"] == made["classes"] and model.pretrained_cfg["num_classes"] == 10
    size = timm.data.create_transform(**found)(Image.new("RGB", (60, 40))).shape
    assert size == (3, 28, 28)
