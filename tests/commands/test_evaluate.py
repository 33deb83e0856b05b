"""`vitkd-ds eval` against a slow evaluation by hand."""

import io
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vitkd_ds.commands.evaluate import evaluate_exported
from vitkd_ds.data.demo import CLASSES
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.recipes.demo import STUDENT_ARGS

MEAN, STD = [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]
MODEL = "deit_tiny_patch16_224"


def write_export(folder, **changes):
    """An exported student with random weights, and the model itself."""
    torch.manual_seed(0)
    args = {"img_size": 28, "num_classes": 10, **STUDENT_ARGS}
    model = timm.create_model(MODEL, **args).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)  # answers that differ from image to image
    description = {
        "model": MODEL, "args": args, "normalization": {"mean": MEAN, "std": STD}, "image_size": 28,
        "val_crop_fraction": 1.0, "interpolation": "bicubic", "classes": list(CLASSES),
    }  # fmt: skip
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
