"""Class names: labels of training, validation and teacher must mean the same."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.data.crops import BICUBIC, BILINEAR, CentreCrops
from vitkd_ds.data.images import check_classes
from vitkd_ds.data.order import SAMPLE_DTYPE
from vitkd_ds.models.build import build_student
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.recipes import build_run
from vitkd_ds.train import parts
from vitkd_ds.train.parts import build_parts, check_teacher_classes, open_split


@pytest.mark.parametrize("found, message", [
    (("dog", "cat"), "found class 0 'dog' where data.train has 'cat'"),
    (("cat",), "found no 'dog'"), (("cat", "dog", "eel"), "found also 'eel'"),
    (("cat", "eel"), "found no 'dog' and also 'eel'"),
    (tuple("abcdefg"), "no 'cat', 'dog' and also 'a', 'b', 'c', 'd', 'e' and 2 more:"),
])  # fmt: skip
def test_what_is_missing_or_too_much_or_the_first_difference_is_named(found, message):
    check_classes(("cat", "dog"), ("cat", "dog"), source="t.json")
    with pytest.raises(ValueError, match=f"t.json must have the classes of data.train in the same order.*{message}"):
        check_classes(("cat", "dog"), found, source="t.json")


def run_of(train, val, num_classes):
    run = build_run("demo_plain", debug=True)
    data = replace(run.data, train=str(train), val=str(val), num_classes=num_classes, num_workers=1)
    return replace(run, data=data, global_batch_size=4, micro_batch_size_per_gpu=4)


@pytest.mark.parametrize("num_classes, error", [
    (2, "data.val must have no classes but those of data.train, found also 'birds' .*did you mean bird"),
    (3, "data.train must have data.num_classes=3 classes, found 2 .* set --data.num_classes=2"),
])  # fmt: skip
def test_a_class_that_training_lacks_is_named_before_the_run(tmp_path, num_classes, error):
    src = write_images(tmp_path / "images", 12, classes=("ant", "bird"))
    train = pack(src, tmp_path / "train.beton", workers=1).path
    (src / "bird").rename(src / "birds")
    val = pack(src, tmp_path / "val.beton", workers=1).path
    with pytest.raises(ValueError, match=error):
        build_parts(run_of(train, val, num_classes), torch.device("cpu"))


def test_validation_gets_trainings_numbers_and_a_teacher_must_have_their_order(tmp_path):
    src = write_images(tmp_path / "images", 12, classes=("ant", "bird", "cat"))
    train = pack(src, tmp_path / "train.beton", workers=1).path
    (tmp_path / "names").write_text("cat\nbird\n")
    shutil.rmtree(src / "ant")
    val = pack(src, tmp_path / "val.beton", classes=str(tmp_path / "names"), workers=1).path
    run = run_of(train, val, 3)
    loader = open_split(run, "val", 12, torch.device("cpu"), classes=("ant", "bird", "cat"))
    assert loader.classes == ("ant", "bird", "cat") and next(loader.epoch(0))[1].tolist() == [2] * 4 + [1] * 4
    (tmp_path / "t.json").write_text(json.dumps({"classes": ["cat", "bird", "ant"]}))
    run = replace(run, teacher=TeacherConfig("deit_tiny_patch16_224", checkpoint=str(tmp_path / "t.safetensors")))
    features = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=1))
    assert not check_teacher_classes(replace(run, losses=features), loader.classes), "no logits are compared"
    with pytest.raises(ValueError, match="t.json must have the classes of data.train in the same order"):
        check_teacher_classes(
            replace(run, losses=replace(features, nkd=replace(features.nkd, weight=1))), loader.classes
        )
    (tmp_path / "t.json").write_text(json.dumps({"classes": list(loader.classes)}))
    assert check_teacher_classes(replace(run, losses=features), loader.classes)


@pytest.mark.parametrize("names, is_kept", [(["ant", "bird"], True), (["cat", "dog"], False)])
def test_the_student_keeps_its_classifier_only_for_the_classes_of_the_data(tmp_path, monkeypatch, names, is_kept):
    built = []
    monkeypatch.setattr(parts, "start_engines", lambda run, config, models, *rest: built.append(models) or 1 / 0)
    packed = pack(write_images(tmp_path / "images", 12, classes=("ant", "bird")), tmp_path / "x.beton", workers=1).path
    run = run_of(packed, packed, 2)
    torch.manual_seed(1)
    source = build_student(run.student, run.data)
    torch.nn.init.ones_(source.head.weight)
    save_file(source.state_dict(), tmp_path / "s.safetensors")
    (tmp_path / "s.json").write_text(json.dumps({"classes": names}))
    run = replace(run, student=replace(run.student, init=str(tmp_path / "s.safetensors")))
    with pytest.raises(ZeroDivisionError):
        parts.build_parts(run, torch.device("cpu"))
    (models,) = built
    assert bool((models.student.head.weight == 1).all()) == is_kept


def test_a_run_that_max_steps_cuts_within_its_warm_up_is_refused(small_beton):
    run = replace(run_of(small_beton, small_beton, 10), debug=False, max_steps=20)
    with pytest.raises(ValueError, match="the warm-up must be shorter than the run, .*found 20 of 20 steps"):
        parts.build_parts(run, torch.device("cpu"))


@pytest.mark.parametrize("interpolation, expected", [("random", "bicubic"), ("bilinear", "bilinear")])
def test_the_export_names_the_filter_that_evaluation_used_and_timm_takes_it(interpolation, expected):
    run = build_run("demo_plain")
    run = replace(run, data=replace(run.data, interpolation=interpolation))
    loader = SimpleNamespace(classes=tuple("abcdefghij"))
    made = parts.Parts(run, *[None] * 5, Normalization((0.5,) * 3, (0.5,) * 3), train_loader=loader)
    described = made.student_description()
    model = timm.create_model(described["model"], **described["args"])
    found = timm.data.resolve_model_data_config(model)
    assert found["interpolation"] == described["interpolation"] == expected
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transformed = timm.data.create_transform(**found)(Image.fromarray(pixels))
    # Against the crop that validation makes, by its own row.
    row = CentreCrops(28, 1.0, interpolation).rows(np.zeros(1, SAMPLE_DTYPE), np.array([40]), np.array([60]))[0]
    how = {BILINEAR: Image.Resampling.BILINEAR, BICUBIC: Image.Resampling.BICUBIC}[row["filter"]]
    resized = Image.fromarray(pixels).resize((row["resized_width"], row["resized_height"]), how)
    left, top = row["window_left"], row["window_top"]
    expected_HWC = np.asarray(resized.crop((left, top, left + 28, top + 28))) / 255 * 2 - 1
    assert np.abs(transformed.permute(1, 2, 0).numpy() - expected_HWC).max() < 1e-5
