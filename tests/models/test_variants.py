"""Student variants: a distillation token trained by a term, and global average pooling."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import run_several
from tests.models.test_features import build
from tests.reference import losses as reference
from vitkd_ds.config.losses import CrossEntropyTerm, DistillationTokenTerm, LossesConfig, ViTKDTerm
from vitkd_ds.losses.distillation_token import DistillationToken
from vitkd_ds.losses.part import Features
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.pair import check_pair
from vitkd_ds.recipes import build_run
from vitkd_ds.train.introduction import model_costs

ONE = torch.tensor(1.0)
TARGETS = torch.eye(7)[[0, 3, 6]]
ARGS = {"embed_dim": 64, "depth": 2, "num_heads": 2, "patch_size": 4}


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_second_head_learns_the_teachers_answer(kind):
    student, second = (3 * torch.randn(3, 7, dtype=torch.float64) for _ in range(2))
    teacher = 0.7 * second.roll(1, 1)  # another class is the likeliest
    term = DistillationTokenTerm(weight=1, kind=kind, temperature=2.0)
    found = DistillationToken(term, None)(Features(student, distillation_BK=second), Features(teacher), TARGETS)
    likeliest = torch.eye(7)[teacher.argmax(1)]
    expected = {"hard": reference.cross_entropy(second, likeliest), "soft": reference.kd(second, teacher, 2.0)}[kind]
    assert found["distillation_token"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("blocks", [None, (0, 1)])
def test_each_head_has_its_own_term_and_the_mean_of_both_answers_in_eval(blocks):
    student, teacher = build("distilled deit")[0].train(), build("deit iii")[0]
    losses = LossesConfig(ce=CrossEntropyTerm(weight=1), distillation_token=DistillationTokenTerm(weight=1))
    if blocks:
        losses = replace(losses, vitkd=ViTKDTerm(weight=1, blocks=blocks))
    distiller = Distiller(student, losses, {"teacher": check_pair(student, teacher, losses, image_size=32)})
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        answers = tap_features(teacher, images, blocks)
        tokens = student.forward_features(images)
        first, second = student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])
    terms = distiller(images, TARGETS, {"teacher": answers}, dict.fromkeys(losses.active(), ONE))
    assert terms["ce"].item() == pytest.approx(reference.cross_entropy(first, TARGETS), rel=1e-5)
    likeliest = torch.eye(7)[answers.logits_BK.argmax(1)]
    assert terms["distillation_token"].item() == pytest.approx(reference.cross_entropy(second, likeliest), rel=1e-5)
    torch.testing.assert_close(student.eval()(images), (first + second) / 2)


def test_a_student_without_the_token_is_rejected():
    losses = LossesConfig(distillation_token=DistillationTokenTerm(weight=1))
    with pytest.raises(ValueError, match="needs a student with a distillation token, got a VisionTransformer"):
        check_pair(build("deit")[0], build("deit iii")[0], losses, image_size=32)


def test_half_of_the_patches_halve_the_teachers_cost():
    run = build_run("demo")
    logits = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0))
    masked = replace(run, losses=logits, teachers={"teacher": replace(run.teachers["teacher"], keep_tokens=24)})
    whole, kept = model_costs(run), model_costs(masked)
    assert kept["student"] == whole["student"] and kept["teacher"]["tokens"] == 25
    assert 0.47 < kept["teacher"]["gflops"] / whole["teacher"]["gflops"] < 0.52


def test_variants_train_are_named_and_can_be_rebuilt_by_timm(tmp_path, demo_cache):
    terms = ["--losses.nkd.weight=0", "--losses.vitkd.weight=0"]
    common = ["--recipe=demo", "--debug", "--max_steps=2", "--optim.warmup_epochs=0", *terms]
    variants = {
        "token": ["--student.model=deit_tiny_distilled_patch16_224", f"--student.model_args={json.dumps(ARGS)}",
                  "--losses.distillation_token.weight=1"],
        "pooled": ["--losses.kd.weight=1", "--teacher.keep_tokens=24", "--student.model_args="
                   + json.dumps(ARGS | {"global_pool": "avg"})],
    }  # fmt: skip
    commands = [[*common, *variant, f"--workdir={tmp_path / name}"] for name, variant in variants.items()]
    outcomes = run_several(1, tmp_path / "commands", commands)
    for name, outcome, head in zip(variants, outcomes, ["class and distillation token", "average pooling"]):
        assert f"parameters, {head}, 5" in outcome["said"], outcome["said"][-2000:]
        description = json.loads((tmp_path / name / "student.json").read_text())
        model = timm.create_model(description["model"], **description["args"])
        model.load_state_dict(load_file(tmp_path / name / "student.safetensors"))
    assert "class token, 25 tokens" in outcomes[1]["said"], "the teacher sees half of the patches"
