"""docs/images.md, command by command, on photographs made here: from two folders to a distilled student."""

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

PAGE = (ROOT / "docs/images.md").read_text()
CLASSES = ("cat", "dog", "großer Hund", "猫")
TEACHER_ARGS = {"patch_size": 8, "embed_dim": 96, "depth": 3, "num_heads": 3}
STUDENT_ARGS = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL = ["--data.image_size=32", "--global_batch_size=32", "--data.num_workers=1", "--timeout_minutes=3"]
"""The page's sizes are for a GPU. A later option takes the place of an earlier one."""


def write_photographs(folder, count, seed, classes=CLASSES):
    """Stripes whose direction is the class, in any colour, phase and light, under noise: no pixel gives it away."""
    draw, (rows, columns) = np.random.default_rng(seed), np.mgrid[:44, :44]
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            angle = np.pi * (CLASSES.index(name) + draw.uniform(-0.2, 0.2)) / len(CLASSES)
            wave = np.sin((rows * np.sin(angle) + columns * np.cos(angle)) * draw.uniform(0.5, 0.9) + draw.uniform(0, 6))
            pixels = 128 + draw.uniform(20, 60, 3) * wave[..., None] * draw.choice([-1, 1]) + draw.normal(0, 25, (44, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:03}.jpg")


def commands():
    lines = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines]


def options_of(words):
    """What makes a command of the page small."""
    if "train.py" not in words:
        return ["--data.image_size=32"] if words[1] == "show" else SMALL[:2] if words[1] == "doctor" else []
    if "hub" in words:
        return [*SMALL, f"--student.model_args={json.dumps(TEACHER_ARGS)}", "--student.init=fetched.safetensors",
                "--student.allow_other_resolution=true", "--optim.lr=1e-3", "--epochs=40", "--augment.rand_augment="]  # fmt: skip
    return [*SMALL, f"--student.model_args={json.dumps(STUDENT_ARGS)}", "--epochs=30", "--augment.rand_augment=",
            "--optim.lr=1e-3"]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with photographs, of which validation lacks a class, and weights as if fetched from the hub."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(ROOT / "train.py", place)
    write_photographs(place / "photos" / "train", 100, seed=0)
    write_photographs(place / "photos" / "val", 100, seed=1, classes=CLASSES[:3])
    torch.manual_seed(0)
    fetched = timm.create_model("deit3_small_patch16_224", img_size=48, num_classes=1000, **TEACHER_ARGS)
    save_file(fetched.state_dict(), place / "fetched.safetensors")
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
    assert "fetched.safetensors has 1000 classes, the data 4: the classifier is left out" in teacher_log
    assert "data.val has 3 of the 4 classes" in teacher_log
    run = json.loads((place / "runs/distilled/config.json").read_text())["run"]
    assert run["teacher"]["model"].startswith("deit3_small") and run["teacher"]["model_args"] == TEACHER_ARGS
    assert run["data"]["num_classes"] == 4 and run["optim"]["warmup_fraction"] == 0.05
    table = next(text for words, text in zip(commands(), said) if "compare" in words)
    assert f"{accuracies['distilled']:.2f}" in table and f"{accuracies['plain']:.2f}" in table
    assert Image.open(place / "curves.png").width > 500 and Image.open(place / "look.png").width > 500
    described = json.loads((place / "my_model/student.json").read_text())
    assert described["classes"] == sorted(CLASSES)
    assert load_file(place / "my_model/student.safetensors").keys() == load_file(
        place / "runs/distilled/student.safetensors"
    ).keys()
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    answer = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() in CLASSES


def train(place, *options, check=True):
    words = [sys.executable, "train.py", "--recipe=images", *SMALL, "--max_steps=2", *options]
    return run_command(*words, cwd=place, check=check)


FOLDERS = ["--data.train=photos/train", "--data.val=photos/val"]
STUDENT = f"--student.model_args={json.dumps(STUDENT_ARGS)}"


def test_folders_are_packed_once_and_the_run_knows_their_classes(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shutil.copytree(place / "photos", tmp_path / "photos", ignore=shutil.ignore_patterns("*.beton*"))
    shutil.copy(ROOT / "train.py", tmp_path)
    first = train(tmp_path, *FOLDERS, STUDENT, "--teacher=none", "--workdir=runs/plain").stderr
    assert "packing photos/train into photos/train.beton, once" in first
    packed = (tmp_path / "photos/train.beton").stat().st_mtime_ns
    options = [*FOLDERS, STUDENT, "--workdir=runs/again", "--teacher.checkpoint=runs/plain/best", "--debug=false"]
    again = train(tmp_path, *options).stderr
    assert "using photos/train.beton, which was packed from photos/train" in again
    assert (tmp_path / "photos/train.beton").stat().st_mtime_ns == packed
    run = json.loads((tmp_path / "runs/again/config.json").read_text())["run"]
    assert (run["data"]["train"], run["data"]["num_classes"]) == ("photos/train.beton", 4)
    assert run["teacher"]["checkpoint"] == "runs/plain/checkpoints/step00000002/student.safetensors"
    assert run["teacher"]["model_args"] == STUDENT_ARGS
    assert {"nkd", "vitkd_mimic"} <= metrics_of(tmp_path / "runs/again")[0].keys()
    mode = (tmp_path / "runs/plain/student.safetensors").stat().st_mode & 0o777
    assert mode == 0o666 & ~_umask()
    Image.new("RGB", (44, 44)).save(tmp_path / "photos/train/cat/new.jpg")
    refused = train(tmp_path, *FOLDERS, "--teacher=none", "--workdir=runs/third", check=False)
    assert refused.returncode == 2 and "has changed since" in refused.stderr
    assert not (tmp_path / "runs/third").exists()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
