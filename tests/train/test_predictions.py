"""An evaluation's stored predictions of all ranks, against the exported student run image by image."""

import io
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import metrics_of
from vitkd_ds.data.demo import CLASSES, demo_beton
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.models.build import DEMO_TEACHER
from vitkd_ds.train.predictions import Predictions

KEYS = ["step", "classes", "image", "label", "student", "student_probability", "teacher", "teacher_probability"]


def load(weights):
    """A model and its mean and standard deviation."""
    made = json.loads(weights.with_suffix(".json").read_text())
    model = timm.create_model(made["model"], **made["args"]).eval()
    model.load_state_dict(load_file(weights))
    return model, *(np.array(made["normalization"][key]) for key in ("mean", "std"))


def answers(weights, numbers):
    """Class and probability of images of the demo's validation data, one by one."""
    model, mean, std = load(weights)
    source, _ = open_beton(demo_beton("val"))
    for number in numbers:
        pixels = np.asarray(Image.open(io.BytesIO(source.read(number))).convert("RGB")) / 255
        image = torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            probability, best = model(image)[0].softmax(0).max(0)
        yield best.item(), probability.item()


def test_a_run_on_two_ranks_stores_the_answers_of_its_last_evaluation(whole_run):
    found = json.loads((whole_run / "predictions.json").read_text())
    assert list(found) == KEYS and found["classes"] == list(CLASSES)
    last = [line for line in metrics_of(whole_run) if "val_top1" in line][-1]
    assert found["step"] == last["step"] == 30
    # 64 of 2,000 images, spread evenly, and each once.
    source, _ = open_beton(demo_beton("val"))
    assert found["image"] == [i * len(source.labels) // 64 for i in range(64)]
    assert found["label"] == [source.labels[number] for number in found["image"]]
    # The run's teacher computes in bf16, so near-equal answers may differ.
    for role, weights, most, tolerance in (
        ("student", whole_run / "student.safetensors", 0, 1e-4), ("teacher", DEMO_TEACHER, 2, 0.03),
    ):  # fmt: skip
        alone = list(answers(weights, found["image"]))
        assert sum(best != own for own, (best, _) in zip(found[role], alone)) <= most
        assert found[f"{role}_probability"] == pytest.approx([part for _, part in alone], abs=tolerance)
    right = {role: sum(map(int.__eq__, found[role], found["label"])) for role in ("student", "teacher")}
    assert last["val_top1"] == pytest.approx(100 * right["student"] / 64)
    assert last["val_teacher_top1"] == pytest.approx(100 * right["teacher"] / 64)
    both = sum(map(int.__eq__, found["student"], found["teacher"]))
    assert last["val_agreement"] == pytest.approx(100 * both / 64)


def test_padding_and_skipped_images_have_no_answer_and_a_missing_teacher_no_column():
    predictions = Predictions()
    predictions.add(torch.tensor([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]]), {}, torch.tensor([1, -1, 0]))
    predictions.add(torch.tensor([[5.0, 0.0], [1.0, 0.0]]), {}, torch.tensor([0, -1]))
    found = predictions.result(np.array([10, 20, 30, 40]))  # the fifth row is padding
    assert found == {
        "image": [10, 30, 40], "label": [1, 0, 0], "student": [1, 0, 0],
        "student_probability": [0.8808, 0.5, 0.9933],
    }  # fmt: skip


def test_each_model_has_its_own_answers():
    predictions = Predictions()
    predictions.add(torch.tensor([[0.0, 2.0]]), {"teacher": torch.tensor([[3.0, 0.0]])}, torch.tensor([1]))
    found = predictions.result(np.array([7]))
    assert (found["student"], found["teacher"]) == ([1], [0])
    assert (found["student_probability"], found["teacher_probability"]) == ([0.8808], [0.9526])
