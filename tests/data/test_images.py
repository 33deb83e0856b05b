"""Opening a split: validation labels use training's class numbers, in any packing order and for any subset."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.data.conftest import write_images
from tests.data.test_loader import another, config
from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.crops import CentreCrops, TrainCrops
from vitkd_ds.data.images import crops_of, fingerprint_of, open_images
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.sources import open_source

CLASSES = ("ant", "bird", "cat", "dog")
ARGS = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 4}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Folder of 24 images, and .betons of it: complete; with reordered classes; with two classes, reordered."""
    root = tmp_path_factory.mktemp("classes")
    src, names = write_images(root / "whole", 24, classes=CLASSES), root / "names"
    found = {"whole": pack(src, root / "whole.beton", write_mode="raw", workers=1).path}
    for name, order in (("other", ("dog", "ant", "cat", "bird")), ("part", ("dog", "bird"))):
        names.write_text("\n".join(order))
        part = shutil.copytree(src, root / name)
        for absent in set(CLASSES).difference(order):
            shutil.rmtree(part / absent)
        found[name] = pack(part, root / f"{name}.beton", classes=str(names), write_mode="raw", workers=1).path
    return root, found


def labels_of(path, *, classes, backend="ffcv"):
    """The label of each validation image, keyed by the image's bytes."""
    num_classes = len(classes) if classes else 4
    data = config(path, num_classes=num_classes, backend=backend)
    loader = another(data, split="val", micro_batch_size=5, classes=classes)
    found = {
        image.numpy().tobytes(): label
        for images, labels in loader.epoch(0)
        for image, label in zip(images, labels.tolist(), strict=True)
    }
    return found, loader


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
@pytest.mark.parametrize(
    "name, said",
    [
        ("other", "data.val has the 4 classes of data.train in another order"),
        ("part", "data.val has 2 of the 4 classes of data.train"),
    ],
)
def test_images_of_a_subset_or_another_order_keep_their_labels(packed, caplog, backend, name, said):
    whole, loader = labels_of(packed[1]["whole"], classes=CLASSES)
    assert len(whole) == 24 and not caplog.text
    with caplog.at_level("INFO"):
        found, loader = labels_of(packed[1][name], classes=CLASSES, backend=backend)
    assert len(found) == (24 if name == "other" else 12) and found == {image: whole[image] for image in found}
    assert loader.classes == CLASSES and [record.getMessage() for record in caplog.records] == [said]
    if name == "other":
        assert labels_of(packed[1][name], classes=None, backend=backend)[0] != whole, "by the file's own class numbers"


def test_the_torchvision_backend_maps_the_classes_of_a_folder_too(packed):
    root, files = packed
    whole = labels_of(files["whole"], classes=CLASSES)[0]
    found = labels_of(root / "part", classes=CLASSES, backend="torchvision")[0]
    assert len(found) == 12 and found == {image: whole[image] for image in found}
    assert set(found.values()) == {1, 3}


def test_classes_that_training_lacks_are_rejected_by_name(packed):
    for backend in ("ffcv", "torchvision"):
        with pytest.raises(ValueError, match="has classes that data.train does not have: 'cat', 'bird'"):
            labels_of(packed[1]["other"], classes=("ant", "dog", "eel", "fox"), backend=backend)
    with pytest.raises(ValueError, match="has 2: .* or pass build_loader the classes of data.train"):
        build_loader(config(packed[1]["part"], num_classes=4), split="val", micro_batch_size=5)


def test_an_exported_student_is_evaluated_on_any_part_of_its_classes(packed, tmp_path):
    root, files = packed
    torch.manual_seed(3)
    model = timm.create_model("deit_tiny_patch16_224", **ARGS).eval()
    save_file(model.state_dict(), tmp_path / "student.safetensors")
    about = {"image_size": 16, "val_crop_fraction": 0.875, "interpolation": "bicubic", "classes": CLASSES}
    about |= {"model": "deit_tiny_patch16_224", "args": ARGS}
    about |= {"normalization": {key: list(model.pretrained_cfg[key]) for key in ("mean", "std")}}
    (tmp_path / "student.json").write_text(json.dumps(about))
    whole = evaluate_exported(str(tmp_path), val=str(files["whole"]))
    assert 0 < whole["top1"] < 100
    assert evaluate_exported(str(tmp_path), val=str(files["other"])) == whole
    # For a subset, against a count by hand with the full set's labels.
    loader = build_loader(config(files["part"], num_classes=4), split="val", micro_batch_size=12, classes=CLASSES)
    (images, _), known = next(loader.epoch(0)), labels_of(files["whole"], classes=CLASSES)[0]
    mean, std = (torch.tensor(model.default_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    best = model((images / 255 - mean) / std).argmax(1).tolist()
    right = [known[image.numpy().tobytes()] == label for image, label in zip(images, best, strict=True)]
    assert evaluate_exported(str(tmp_path), val=str(files["part"]))["top1"] == pytest.approx(100 * sum(right) / 12)
    (tmp_path / "student.json").write_text(json.dumps(about | {"classes": ["ant", "bird", "cat", "eel"]}))
    with pytest.raises(ValueError, match="the student does not have: 'dog'"):
        evaluate_exported(str(tmp_path), val=str(files["whole"]))


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_the_fingerprint_matches_the_opened_images(packed, backend):
    root, files = packed
    paths = [*files.values()] + ([root / "whole", root / "part"] if backend == "torchvision" else [])
    found = []
    for path in paths:
        num_classes = len(open_source(path).classes if path.is_dir() else check_beton(path).classes)
        data = config(path, num_classes=num_classes, backend=backend)
        found.append(fingerprint_of(data, "val"))
        assert found[-1] == open_images(data, split="val", seed=0, micro_batch_size=1).fingerprint
    assert len(set(found)) == len(paths)


def test_crop_settings_reach_the_crops():
    numbers = {"crop_scale": (0.2, 0.3), "crop_ratio": (0.5, 0.6), "flip_probability": 0.9, "val_crop_fraction": 0.7}
    data = config("", image_size=20, interpolation="bilinear", **numbers)
    assert crops_of(data, split="train", seed=3) == TrainCrops(3, 20, (0.2, 0.3), (0.5, 0.6), 0.9, "bilinear")
    assert crops_of(data, split="val", seed=3) == CentreCrops(20, 0.7, "bilinear")


def test_ignored_labels_are_removed(beton):
    options = {"split": "train", "seed": 0, "micro_batch_size": 2}
    images = open_images(config(beton, labels="ignore", num_classes=0), **options)
    assert images.classes == () and not images.labels.any() and len(images.labels) == 22
