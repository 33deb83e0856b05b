"""`vitkd-ds eval` against a slow evaluation by hand."""

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import TeacherConfig, as_dict
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.recipes import build_run
from vitkd_ds.recipes.demo import STUDENT_ARGS

MEAN, STD = [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]
MODEL = "deit_tiny_patch16_224"


def write_export(folder, **changes):
    """An exported student with random weights, and the model itself."""
    torch.manual_seed(0)
    args = {"img_size": 28, "num_classes": 10, **STUDENT_ARGS}
    model = timm.create_model(MODEL, **args).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)  # so that outputs differ between images
    description = {
        "model": MODEL,
        "args": args,
        "normalization": {"mean": MEAN, "std": STD},
        "image_size": 28,
        "val_crop_fraction": 1.0,
        "interpolation": "bicubic",
        "classes": list(CLASSES),
    }
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "student.safetensors")
    (folder / "student.json").write_text(json.dumps(description | changes))
    return model


@pytest.mark.parametrize("mean, std", [(MEAN, STD), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_a_student_is_evaluated_with_its_own_normalisation(tmp_path, small_beton, mean, std):
    model = write_export(tmp_path / "student", normalization={"mean": mean, "std": std})
    source, _ = open_beton(small_beton)
    right = 0
    for number, label in enumerate(source.labels):
        pixels = np.asarray(Image.open(io.BytesIO(source.read(number))).convert("RGB")) / 255
        image = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            right += int(model(image).argmax()) == label
    found = evaluate_exported(str(tmp_path / "student"), val=str(small_beton))
    assert found["top1"] == pytest.approx(100 * right / 60) and found["num_images"] == 60


@pytest.mark.parametrize(
    "teacher",
    [
        {"teacher": "{}/teacher"},
        {"teacher": MODEL, "teacher_checkpoint": "{}/teacher"},
        {"teacher": MODEL, "teacher_checkpoint": "{}/teacher/student.safetensors"},
        {"teacher": "{}/teacher/student.safetensors"},
    ],
)
def test_a_teacher_is_a_folder_or_a_name_with_weights(tmp_path, small_beton, teacher):
    for name in ("student", "teacher"):
        write_export(tmp_path / name)
    options = {key: value.format(tmp_path) for key, value in teacher.items()}
    found = evaluate_exported(str(tmp_path / "student"), val=str(small_beton), **options)
    assert found["agreement"] == 100 and found["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"teacher": "{}/teacher", "teacher_checkpoint": "{}/student"},
            "--teacher=.*teacher and --teacher_checkpoint=.*student both give weights",
        ),
        ({"teacher": "runs/teachr"}, "--teacher: no weight file, run, checkpoint or export at runs/teachr"),
        (
            {"teacher": "{}/lone.safetensors"},
            "lone.safetensors is a file of weights without a description of its model. Pass .*--teacher_chec",
        ),
        (
            {"teacher": MODEL, "teacher_checkpoint": "{}/none"},
            "--teacher_checkpoint: no weight file, run",
        ),
        (
            {"teacher": "vit_tiny_patch16_224", "teacher_checkpoint": "{}/teacher"},
            "--teacher=vit_tiny_patch16_224 is not the model of --teacher_checkpoint=.*teacher, which is a deit_tiny",
        ),
        (
            {"teacher": "deit_tiny_patch16_244"},
            "teacher.model=.* is not a timm model; did you mean deit_tiny_patch16_224",
        ),
        ({"teacher_checkpoint": "{}/teacher"}, "--teacher_checkpoint needs --teacher"),
        ({"teacher": "{}/empty"}, "student.json has no valid model, got None. Restore the file"),
        (
            {"val": "{}/photos"},
            "val is a folder that is not packed yet: .*photos.beton' does not exist. Run: vitkd-ds pack .*photos .*ton",
        ),
        (
            {"val": "{}/student"},
            "val must be a .beton or a folder with a folder per class, got .*. Pack it first",
        ),
    ],
)
def test_data_or_models_that_cannot_be_evaluated_are_rejected_by_option(tmp_path, small_beton, options, message):
    for name in ("student", "teacher", "empty"):
        write_export(tmp_path / name)
    (tmp_path / "empty" / "student.json").write_text("{}")
    (tmp_path / "lone.safetensors").touch()
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(tmp_path / "photos" / "ant" / "1.png")
    options = {"val": str(small_beton)} | {key: value.format(tmp_path) for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        evaluate_exported(str(tmp_path / "student"), **options)


@pytest.mark.parametrize(
    "description, message",
    [
        ("{}", "student.json has no valid model"),
        ("[]", "student.json must be a JSON object"),
        ("{", "not valid JSON"),
        ('{"model": "x", "args": {}}', "student.json has no valid args.num_classes"),
    ],
)
def test_a_damaged_description_gives_a_clear_error(tmp_path, small_beton, description, message):
    write_export(tmp_path / "student")
    (tmp_path / "student" / "student.json").write_text(description)
    with pytest.raises(ValueError, match=message):
        evaluate_exported(str(tmp_path / "student"), val=str(small_beton))


def test_a_packed_folder_is_evaluated_and_unknown_classes_are_left_to_the_student(tmp_path):
    write_export(tmp_path / "student")
    for name in (CLASSES[3], "eel"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (28, 28)).save(tmp_path / "photos" / name / "1.png")
    pack(tmp_path / "photos", tmp_path / "photos.beton", workers=1)
    with pytest.raises(ValueError) as refusal:
        evaluate_exported(str(tmp_path / "student"), val=str(tmp_path / "photos"))
    said = str(refusal.value)
    assert "(data.val) has classes that the student does not have: 'eel'" in said
    assert said.endswith("use images of the student's classes, or rename the class.") and "data.train" not in said


def test_a_run_on_some_classes_is_evaluated_on_their_images(tmp_path, small_beton):
    """The run's own images have more classes than its student."""
    kept = [CLASSES[7], CLASSES[2]]
    (tmp_path / "kept").write_text("\n".join(kept) + "\n")
    folder = tmp_path / "run"
    write_export(folder, classes=kept, args={"img_size": 28, "num_classes": 2, **STUDENT_ARGS})
    model = timm.create_model(MODEL, img_size=28, num_classes=2, **STUDENT_ARGS)
    save_file(model.state_dict(), folder / "student.safetensors")
    run = build_run("demo_plain")
    data = replace(
        run.data, val=str(small_beton), train=str(small_beton), num_classes=2, classes=str(tmp_path / "kept")
    )
    (folder / "config.json").write_text(json.dumps({"run": as_dict(replace(run, data=data))}))
    labels = read_beton(small_beton)[2]
    found = evaluate_exported(str(folder))
    assert found["num_images"] == np.isin(labels, [2, 7]).sum() > 0


def test_a_run_is_evaluated_from_another_folder_on_the_images_of_its_config(tmp_path, small_beton, monkeypatch, caplog):
    caplog.set_level("INFO")
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    for folder in (project / "runs", project / "photos", elsewhere / "photos"):
        folder.mkdir(parents=True)
    for suffix in ("", ".json"):
        shutil.copy(f"{small_beton}{suffix}", project / "photos" / f"val.beton{suffix}")
    (elsewhere / "photos" / "val.beton").write_text("another project's")
    folder = project / "runs" / "x"
    write_export(folder)
    write_export(project / "teacher")
    run = build_run("demo")
    teacher = TeacherConfig(model=MODEL, model_args=STUDENT_ARGS, checkpoint="teacher/student.safetensors")
    run = replace(run, workdir="runs/x", data=replace(run.data, val="photos/val.beton"), teachers={"teacher": teacher})
    (folder / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    expected = evaluate_exported(str(folder), val=str(small_beton), teacher=str(project / "teacher"))
    for place in (elsewhere, project, folder):
        monkeypatch.chdir(place)
        caplog.clear()
        assert evaluate_exported(os.path.relpath(folder)) == expected and expected["agreement"] == 100
        assert f"photos/val.beton (data.val in {Path(os.path.relpath(folder), 'config.json')})" in caplog.text
    shutil.rmtree(project / "photos")
    with pytest.raises(ValueError, match=r"^photos/val.beton, the data.val in config.json, does not exist. Pass"):
        evaluate_exported("./")
