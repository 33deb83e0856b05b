"""`vitkd-ds predict` and `load_student` against timm's own transform, and bit for bit against evaluation."""

import csv
import io
import json
import logging
import os
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.commands.test_evaluate import write_export
from tests.commands.test_probe import write_student
from vitkd_ds import cli, load_student
from vitkd_ds.commands import predict as module
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.predict import open_exported, predict
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models.build import normalization_of
from vitkd_ds.train.evaluate import pooled_features

SIZES = [(40, 31), (28, 28), (29, 90), (64, 28), (33, 33)]


@pytest.fixture
def photos(tmp_path):
    """Five images of several shapes, one in a subfolder."""
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    pixels = np.random.default_rng(3)
    for number, (height, width) in enumerate(SIZES):
        place = tmp_path / "photos" / ("deeper" if number == 4 else "") / f"{number}.png"
        Image.fromarray(pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(place)
    return tmp_path / "photos"


def write_cropped(folder, crop_fraction, interpolation):
    """An exported student with its own crop settings, and weights that make outputs differ between images."""
    write_export(folder)
    described = json.loads((folder / "student.json").read_text())
    described |= {"val_crop_fraction": crop_fraction, "interpolation": interpolation}
    described["args"]["pretrained_cfg_overlay"] = described["normalization"] | {
        "input_size": [3, 28, 28],
        "crop_pct": crop_fraction,
        "interpolation": interpolation,
    }
    (folder / "student.json").write_text(json.dumps(described))


def table(lines):
    """The head and the rows of CSV."""
    head, *rows = csv.reader(io.StringIO("\n".join(lines)))
    return head, rows


def paths_of(photos):
    return [photos / f"{number}.png" for number in range(4)] + [photos / "deeper" / "4.png"]


def by_hand(student, paths):
    """Probabilities [N, 10] computed with only timm and Pillow, preprocessed as the loaded model says."""
    model = load_student(str(student))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.no_grad():
        return model(torch.stack([transform(Image.open(path)) for path in paths])).softmax(1)


@pytest.mark.parametrize("crop_fraction, interpolation", [(1.0, "bicubic"), (0.875, "bilinear")])
def test_a_folder_gives_a_csv_of_the_likeliest_classes_matching_timm(tmp_path, photos, crop_fraction, interpolation):
    write_cropped(tmp_path / "student", crop_fraction, interpolation)
    head, rows = table(predict(str(tmp_path / "student"), [str(photos)], top=3))
    assert head == ["image", *(f"{what}_{i}" for i in (1, 2, 3) for what in ("class", "probability"))]
    assert [row[0] for row in rows] == [str(path) for path in paths_of(photos)]
    expected = by_hand(tmp_path / "student", paths_of(photos)).topk(3)
    for row, parts, labels in zip(rows, *expected, strict=True):
        assert row[1::2] == [CLASSES[label] for label in labels]
        assert list(map(float, row[2::2])) == pytest.approx(parts.tolist(), abs=2e-4)


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_features_equal_evaluations_bit_for_bit_even_with_several_processes(tmp_path, photos, monkeypatch, backend):
    write_student(tmp_path / "student")
    pack(photos, tmp_path / "x.beton", labels="none", write_mode="raw", max_resolution=0)
    exported = open_exported(str(tmp_path / "student"))
    data = exported.data(str(tmp_path / "x.beton"), num_classes=0, backend=backend)
    model, loader = exported.model(), build_loader(data, split="val", micro_batch_size=2)
    expected, _ = pooled_features(model, loader, normalization=normalization_of(model))
    monkeypatch.setattr(module, "MICRO_BATCH", 2)
    head, rows = table(predict(str(tmp_path / "student"), [str(photos)]))
    assert head == ["image", *(f"feature_{i}" for i in range(64))]
    assert torch.equal(torch.tensor([list(map(float, row[1:])) for row in rows]), expected)


def test_files_give_text_in_order_with_classes_or_features_on_request(tmp_path, photos):
    write_export(tmp_path / "student", classes=["a\nb", *CLASSES[1:]])
    names = [str(photos / "1.png"), str(photos / "0.png")]
    lines = "\n".join(predict(str(tmp_path / "student"), names, top=99)).splitlines()
    assert lines[0] == names[0] and lines[11] == names[1] and len(lines) == 22
    shares = [float(line.split()[0]) for line in lines[1:11]]
    assert sum(shares) == pytest.approx(1, abs=1e-3) and shares == sorted(shares, reverse=True)
    assert {line.split("  ")[2] for line in lines[1:11]} == {r"a\nb", *CLASSES[1:]}
    head, rows = table(predict(str(tmp_path / "student"), names, features=True))
    assert len(head) == 65 and [row[0] for row in rows] == names


def test_undecodable_files_are_named_and_skipped(tmp_path, photos, caplog):
    write_export(tmp_path / "student")
    (photos / "2.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        _, rows = table(predict(str(tmp_path / "student"), [str(photos)]))
    assert [os.path.basename(row[0]) for row in rows] == ["0.png", "1.png", "3.png", "4.png"]
    assert f"cannot be decoded: {photos}/2.png: ValueError: it is not an image" in caplog.text
    with pytest.raises(ValueError, match="none of the images can be decoded; the first is .*2.png"):
        [*predict(str(tmp_path / "student"), [str(photos / "2.png")])]


@pytest.mark.parametrize(
    "words, options, message",
    [
        (["none.png"], {}, "no image or folder at 'none.png'. Check the path."),
        (["{}/empty"], {}, "no images .* at any depth in '.*empty'. Check the path"),
        (["{}/photos"], {"top": 0}, "--top must be positive, got 0"),
    ],
)
def test_unsupported_requests_are_rejected(tmp_path, photos, words, options, message):
    write_export(tmp_path / "student")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        [*predict(str(tmp_path / "student"), [word.format(tmp_path) for word in words], **options)]


def test_the_command_prints_only_csv_even_for_names_that_are_not_text(tmp_path, photos, capfdbinary, monkeypatch):
    write_export(tmp_path / "student")
    name = os.fsencode(photos) + b'/a,"\xff.png'
    (photos / "1.png").rename(os.fsdecode(name))
    words = ["vitkd-ds", "predict", str(tmp_path / "student"), str(photos), "--top=1"]
    monkeypatch.setattr(sys, "argv", words)
    cli.main()
    head, *rows = csv.reader(io.StringIO(capfdbinary.readouterr().out.decode(errors="surrogateescape")))
    assert head == ["image", "class_1", "probability_1"] and len(rows) == 5
    assert os.fsdecode(name) in [row[0] for row in rows]


def test_a_loaded_student_equals_the_exported_one_and_is_in_eval_mode(tmp_path):
    model = write_export(tmp_path / "student")
    loaded, images_BCHW = load_student(tmp_path / "student"), torch.randn(2, 3, 28, 28)
    assert not loaded.training and loaded.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert torch.equal(loaded(images_BCHW), model(images_BCHW))
    with pytest.raises(ValueError, match="is not a run, checkpoint or exported student"):
        load_student(tmp_path)


@pytest.mark.parametrize("features", [False, True])
def test_no_prediction_builds_a_graph(tmp_path, photos, features, monkeypatch):
    write_export(tmp_path / "student")
    graphs, build_model = [], module.Exported.model

    def watched(exported):
        model = build_model(exported)
        model.patch_embed.register_forward_hook(lambda own, images, output: graphs.append(output.requires_grad))
        assert next(model.parameters()).requires_grad
        return model

    monkeypatch.setattr(module.Exported, "model", watched)
    assert len([*predict(str(tmp_path / "student"), [str(photos)], features=features)]) == 6
    assert graphs == [False]
