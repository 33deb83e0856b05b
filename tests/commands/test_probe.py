"""`vitkd-ds eval --knn --probe`: features by hand with only timm and Pillow, and rejected data."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.commands.test_evaluate import MEAN, MODEL, STD
from tests.conftest import run_command
from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import as_dict
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.recipes import build_run
from vitkd_ds.recipes.demo import STUDENT_ARGS
from vitkd_ds.train.probe import knn_votes, linear_probe, top1


def write_student(folder, *, num_classes=0):
    """An exported student with random weights, and the model itself."""
    torch.manual_seed(0)
    args = {"img_size": 28, "num_classes": num_classes, **STUDENT_ARGS}
    model = timm.create_model(MODEL, **args | {"num_classes": 10}).eval()
    if not num_classes:
        model.reset_classifier(0)  # all other weights as with a classifier
    torch.nn.init.normal_(model.patch_embed.proj.weight, std=0.3)  # so that features differ between images
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "student.safetensors")
    described = {
        "model": MODEL,
        "args": args,
        "normalization": {"mean": MEAN, "std": STD},
        "image_size": 28,
        "val_crop_fraction": 1.0,
        "interpolation": "bicubic",
        "classes": list(CLASSES[:num_classes]),
    }
    (folder / "student.json").write_text(json.dumps(described))
    return model


@pytest.fixture(scope="module")
def others(small_beton, tmp_path_factory):
    """40 images in five classes, packed with the ten classes in order, in reverse order, and without labels."""
    folder, pixels = tmp_path_factory.mktemp("others"), np.random.default_rng(7)
    for name in CLASSES[:5]:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(8):
            image = Image.fromarray(pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8))
            image.save(folder / "images" / name / f"{i}.png")
    (folder / "backwards.txt").write_text("\n".join(CLASSES[::-1]))
    for name, options in (
        ("forwards", {"classes": str(small_beton)}),
        ("none", {"labels": "none"}),
        ("backwards", {"classes": str(folder / "backwards.txt")}),
    ):
        pack(folder / "images", folder / f"{name}.beton", write_mode="raw", max_resolution=0, workers=1, **options)
    return folder


def by_hand(model, beton):
    """The class token after the final norm, and the label, of each image in a file."""
    source, _ = open_beton(beton)
    images = [np.asarray(Image.open(io.BytesIO(source.read(i))).convert("RGB")) / 255 for i in range(len(source.names))]
    with torch.no_grad():
        inputs = torch.stack([torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1).float() for image in images])
        return model.forward_features(inputs)[:, 0], torch.tensor(source.labels)


@pytest.mark.parametrize("num_classes", [0, 10])
def test_features_are_class_tokens_with_or_without_a_classifier(tmp_path, small_beton, others, num_classes):
    model = write_student(tmp_path / "student", num_classes=num_classes)
    (train, labels), (val, val_labels) = by_hand(model, small_beton), by_hand(model, others / "forwards.beton")
    expected = linear_probe(train, labels, val, num_classes=10)
    options = {"train": str(small_beton), "val": str(others / "forwards.beton"), "micro_batch_size": 7}
    found = evaluate_exported(str(tmp_path / "student"), knn=True, probe=True, **options)
    assert found == {
        "num_train": 60,
        "num_images": 40,
        "knn_top1": top1(knn_votes(train, labels, val, num_classes=10), val_labels),
        "probe_top1": top1(expected.logits_MK, val_labels),
        "probe_lr": expected.lr,
    }
    assert found["knn_top1"] != found["probe_top1"], "otherwise the two could not be told apart"
    both = {"num_train", "num_images"}
    assert evaluate_exported(str(tmp_path / "student"), knn=True, **options).keys() == both | {"knn_top1"}
    assert evaluate_exported(str(tmp_path / "student"), probe=True, **options).keys() == both | {
        "probe_top1",
        "probe_lr",
    }


def test_labels_are_compared_by_name_and_the_results_are_printed(tmp_path, small_beton, others):
    write_student(tmp_path / "student")
    values = [
        evaluate_exported(str(tmp_path / "student"), knn=True, train=str(small_beton), val=str(path))
        for path in (others / "forwards.beton", others / "backwards.beton")
    ]
    assert values[0] == values[1]
    words = ["--knn", "--probe", "--train", small_beton, f"--val={others / 'backwards.beton'}"]
    printed = run_command("vitkd-ds", "eval", tmp_path / "student", *words).stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["num_train", "num_images", "knn_top1", "probe_top1", "probe_lr"]
    assert printed[2].split()[1] == f"{values[0]['knn_top1']:.2f}" and len(printed[4].split()[1]) == 6


def test_for_a_run_on_some_classes_only_their_images_and_numbers_count(tmp_path, small_beton, others):
    kept = [CLASSES[place] for place in (4, 2, 7, 1)]
    (tmp_path / "kept.txt").write_text("\n".join(kept))
    run = build_run("demo_plain")
    data = {"train": str(small_beton), "val": str(others / "forwards.beton"), "classes": str(tmp_path / "kept.txt")}
    run = replace(run, data=replace(run.data, num_classes=4, **data))
    model = write_student(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    splits = []
    for path in (small_beton, others / "forwards.beton"):
        features, labels = by_hand(model, path)
        chosen = [(i, kept.index(CLASSES[label])) for i, label in enumerate(labels) if CLASSES[label] in kept]
        splits += [features[[i for i, _ in chosen]], torch.tensor([label for _, label in chosen])]
    found = evaluate_exported(str(tmp_path / "run"), knn=True, probe=True)
    assert (found["num_train"], found["num_images"]) == (24, 24)
    assert found["knn_top1"] == top1(knn_votes(*splits[:3], num_classes=4), splits[3])
    assert found["probe_top1"] == top1(linear_probe(*splits[:3], num_classes=4).logits_MK, splits[3])
    every = evaluate_exported(str(tmp_path / "run"), knn=True, train=str(small_beton))
    assert (every["num_train"], every["num_images"]) == (60, 40), "all images of the named classes count"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": "", "val": "{}/none.beton"}, "no images: .*student does not belong to a run. Pass --train"),
        (
            {"train": "{}/none.beton", "val": "demo"},
            "has no labels of two or more classes, .*Pass labelled images as --train",
        ),
        (
            {"train": "demo", "val": "{}/none.beton"},
            "has no labels of two or more classes, .*Pass labelled images as --val",
        ),
        ({"train": "demo", "val": "demo", "teacher": "runs/x"}, "--teacher has no effect with --knn and --probe"),
        (
            {"train": "{}/images", "val": "demo"},
            "train is a folder that is not packed yet: .*images.beton' does not exist",
        ),
        ({"train": "demo", "val": "demo", "knn": False}, "--train needs --knn or --probe"),
    ],
)
def test_unsupported_requests_are_rejected(tmp_path, others, demo_cache, options, message):
    write_student(tmp_path / "student")
    options = {"knn": True} | {
        key: value.format(others) if isinstance(value, str) else value for key, value in options.items()
    }
    with pytest.raises(ValueError, match=message):
        evaluate_exported(str(tmp_path / "student"), **options)


def test_a_student_without_a_classifier_is_compared_with_a_teacher_by_features(tmp_path, small_beton, others):
    for name, num_classes in (("student", 0), ("teacher", 10)):
        write_student(tmp_path / name, num_classes=num_classes)
    for val in (small_beton, others / "none.beton"):
        found = evaluate_exported(str(tmp_path / "student"), val=str(val), teacher=str(tmp_path / "teacher"))
        assert found.keys() == {"num_images", "cka", "cka_patches"} and found["num_images"] in (60, 40)
        assert found["cka"] == pytest.approx(1) and found["cka_patches"] == pytest.approx(1)
    with pytest.raises(ValueError, match="has no classifier and no teacher to compare its features with"):
        evaluate_exported(str(tmp_path / "student"), val=str(small_beton))
    with pytest.raises(ValueError, match=".data.val. has no labels, but the student has classes"):
        evaluate_exported(str(tmp_path / "teacher"), val=str(others / "none.beton"))
