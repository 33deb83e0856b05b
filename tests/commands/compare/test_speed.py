"""Inference speed of student and teacher: which models are measured, how, and how the times are reported."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.compare.conftest import change, num_parameters, rows_of, shown, table, unfinish
from vitkd_ds.commands.compare import speed


class Seen:
    """Stand-in for the measurement: records models and images, and returns 0.01 s per 0.2 M parameters."""

    def __call__(self, models, images):
        self.models, self.images = models, images
        assert not any(model.training for model in models.values())
        return {key: 5e-8 * sum(p.numel() for p in model.parameters()) for key, model in models.items()}


@pytest.fixture
def seen(monkeypatch):
    seen = Seen()
    monkeypatch.setattr(speed, "forward_seconds", seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return seen


def test_the_exported_student_and_the_teacher_are_measured_once_per_architecture(runs, seen):
    unfinish(runs / "taught1")
    for run, checkpoint in ((runs / "taught0", "hub"), (runs / "taught3", "/no/where.safetensors")):
        change(run, run__teacher__checkpoint=checkpoint)
    folders = [runs / "taught1", runs / "plain0", runs / "taught0", runs / "taught3"]
    text, rows = shown(*folders, speed=True), rows_of(shown(*folders, speed=True, csv=True))
    student, teacher = seen.models.values()
    weights = load_file(runs / "taught1" / "checkpoints" / "step00000014" / "student.safetensors")
    assert all(torch.equal(weights[name], weight) for name, weight in student.state_dict().items())
    assert sum(p.numel() for p in teacher.parameters()) == 1_205_386
    assert {tuple(images.shape) for images in seen.images.values()} == {(16, 3, 28, 28)}
    assert "inference on CPU, " in text and "float32, 16 images per forward)\n" in text
    images_per_s = [16 / (5e-8 * count) for count in (num_parameters(runs / "plain0"), 1_205_386)]
    ratio = images_per_s[0] / images_per_s[1]
    for name, row in rows.items():
        has_teacher = name != "plain0"
        assert table(text)[name][9:] == [f"{images_per_s[0]:,.0f}", f"{ratio:.1f}" if has_teacher else "-"]
        assert float(row["student_inference_images_per_s"]) == pytest.approx(images_per_s[0])
        found = [row["teacher_inference_images_per_s"], row["inference_times_teacher"]]
        assert [float(value) for value in found if value] == pytest.approx([images_per_s[1], ratio] * has_teacher)
        assert row["inference_device"].startswith("CPU")


def test_a_larger_student_is_another_architecture_and_a_missing_one_is_rejected(runs, seen):
    described = json.loads((runs / "plain1" / "student.json").read_text())
    change(runs / "taught0", run__teacher__model_args=described["args"] | {"depth": 9, "patch_size": 7})
    for key in ("num_classes", "img_size", "pretrained_cfg_overlay"):
        config = json.loads((runs / "taught0" / "config.json").read_text())
        config["run"]["teacher"]["model_args"].pop(key)
        (runs / "taught0" / "config.json").write_text(json.dumps(config))
    shown(runs / "plain1", runs / "taught0", runs / "taught3", speed=True)
    assert [len(model.blocks) for model in seen.models.values()] == [4, 9, 6]
    (runs / "taught3" / "student.safetensors").unlink()
    del seen.models
    with pytest.raises(ValueError, match=r"cannot measure the student of .*taught3: .* Pass --speed false"):
        shown(runs / "plain1", runs / "taught3", speed=True)
    assert not hasattr(seen, "models"), "nothing is measured before all is built"


def test_a_teacher_is_measured_at_its_own_image_size_without_its_probe(runs, seen):
    change(runs / "taught0", run__teacher__image_size=56, run__teacher__head="/no/where.safetensors")
    shown(runs / "taught0", speed=True)
    assert [tuple(images.shape[-2:]) for images in seen.images.values()] == [(28, 28), (56, 56)]
    assert list(seen.models.values())[1].patch_embed.grid_size == (14, 14)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "student.json must be a JSON object"),
        ("{}", "student.json has no valid model"),
        ("{", "not valid JSON"),
        (
            '{"model": "deit_tiny_patch16_224", "args": {"num_classes": 10}}',
            "student.json has no valid normalization.mean",
        ),
    ],
)
def test_a_damaged_student_description_gives_a_clear_error(runs, seen, text, message):
    (runs / "plain0" / "student.json").write_text(text)
    with pytest.raises(ValueError, match=f"cannot measure the student of .*plain0: .*{message}.* --speed false"):
        shown(runs / "plain0", speed=True)


class Timed(torch.nn.Module):
    """A model that takes this many seconds on a fake clock, and ten times as many in its first three forwards."""

    def __init__(self, name, seconds, clock):
        super().__init__()
        self.name, self.seconds, self.clock = name, seconds, clock

    def forward(self, images):
        assert torch.is_inference_mode_enabled()
        calls = self.clock["calls"].count(self.name)
        self.clock["calls"].append(self.name)
        self.clock["now"] += self.seconds * (10 if calls < 3 else 1 + calls % 3)


@pytest.mark.parametrize("student_s, teacher_s, most_s", [(0.001, 0.002, 3.0), (0.01, 0.02, 3.0), (5.0, 10.0, 300.0)])
def test_models_are_timed_in_turn_within_a_limit_and_the_median_counts(monkeypatch, student_s, teacher_s, most_s):
    clock = {"now": 0.0, "calls": []}
    monkeypatch.setattr(speed, "_synchronised_time", lambda: clock["now"])
    models = {name: Timed(name, seconds, clock) for name, seconds in (("s", student_s), ("t", teacher_s))}
    found = speed.forward_seconds(models, dict.fromkeys(models))
    rounds = clock["calls"].count("s")
    assert clock["calls"] == ["s", "t"] * rounds and clock["now"] <= most_s and 2 <= rounds <= 100
    assert rounds == 2 or found == pytest.approx({"s": 2 * student_s, "t": 2 * teacher_s})


def test_the_first_forwards_do_not_count(monkeypatch):
    clock = {"now": 0.0, "calls": []}
    monkeypatch.setattr(speed, "_synchronised_time", lambda: clock["now"])
    monkeypatch.setattr(speed, "MOST_ROUNDS", 5)
    found = speed.forward_seconds({"s": Timed("s", 0.001, clock)}, {"s": None})
    assert found["s"] == pytest.approx(0.0015), "the median of the fourth, 1 ms, and the fifth, 2 ms"


def test_the_packaged_teacher_is_slower_than_the_student(runs):
    row = rows_of(shown(runs / "taught0", speed=True, csv=True))["taught0"]
    student, teacher = (float(row[f"{role}_inference_images_per_s"]) for role in ("student", "teacher"))
    assert student > 1.5 * teacher > 15 and float(row["inference_times_teacher"]) == pytest.approx(student / teacher)
