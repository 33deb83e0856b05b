"""Foundation teachers: native image size, a linear probe as head, licence, and an Eva pair that trains."""

import json
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.conftest import numerics_of, run_several
from tests.engine.test_stream import ARGS, DATA, config, save, source
from tests.tiers import costly
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.models.build import build_exported, build_student, build_teacher, license_of, normalization_of
from vitkd_ds.models.features import tap_features
from vitkd_ds.recipes import build_run
from vitkd_ds.train.introduction import model_costs
from vitkd_ds.train.parts import build_models

DINO = "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize("width, seen", [(48, "class token"), (96, "class token and mean of the patches")])
@torch.no_grad()
def test_a_probe_gives_a_headless_teacher_logits(tmp_path, width, seen):
    weights = {"linear.weight": torch.randn(10, width), "linear.bias": torch.randn(10)}
    save_file(weights, head := tmp_path / "head.safetensors")
    teacher = build_teacher(config("dinov3", save("dinov3", tmp_path), head=str(head)), DATA)
    images = torch.randn(2, 3, 16, 16)
    tokens = source("dinov3").bfloat16().float().forward_features(images)
    pooled = tokens[:, 0] if width == 48 else torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], 1)
    expected = pooled @ weights["linear.weight"].T + weights["linear.bias"]
    assert teacher.num_classes == 10
    for blocks in (None, (), (0, 2)):
        torch.testing.assert_close(tap_features(teacher, images, blocks).logits_BK, expected, rtol=1e-4, atol=1e-4)


def test_a_probe_with_other_classes_or_width_is_rejected(tmp_path):
    path = save("dinov3", tmp_path)
    for shapes, message in {
        ((5, 48), (5,)): r"shape \(5, 48\) .*must be \(10, 48\) or \(10, 96\)",
        ((10, 64), (10,)): r"shape \(10, 64\) and a bias of length 10\. .*Save only the probe",
        ((10, 48), (9,)): r"shape \(10, 48\) and a bias of length 9\. .* a bias of length 10\.",
        ((10, 48), (10, 48)): "one weight .* and at most one bias",
    }.items():
        save_file({str(i): torch.zeros(shape) for i, shape in enumerate(shapes)}, head := tmp_path / "head.safetensors")
        with pytest.raises(ValueError, match=f"teacher.head=.*{message}"):
            build_teacher(config("dinov3", path, head=str(head)), DATA)
    with pytest.raises(ValueError, match="teacher.head: no file at /no/where"):
        build_teacher(config("dinov3", path, head="/no/where.safetensors"), DATA)
    save_file({"w": torch.zeros(10, 96)}, head)
    headless = TeacherConfig(model="vit_small_patch16_224", checkpoint="random", head=str(head), model_args={
        **ARGS, "class_token": False, "global_pool": "avg"})  # fmt: skip
    with pytest.raises(
        ValueError, match=r"of shape \(10, 96\)\. .* width 48, the shape must be \(10, 48\), with a bias of length 10"
    ):
        build_teacher(headless, DATA)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_images_are_resized_for_the_teacher_and_then_normalised(dtype):
    model = source("dinov3")
    images = torch.randint(256, (2, 3, 28, 28), dtype=torch.uint8).to(dtype)
    found = normalization_of(model, image_size=42).apply(images, torch.float32)
    resized = F.interpolate(images.float(), (42, 42), mode="bicubic", antialias=True).clamp(0, 255)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(found, (resized / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert normalization_of(model, image_size=42) != normalization_of(model) == normalization_of(model, image_size=0)
    same, plain = normalization_of(model, image_size=28), normalization_of(model)
    assert torch.equal(same.apply(images, torch.float32), plain.apply(images, torch.float32))


def test_a_teacher_with_its_own_image_size_has_its_own_grid_and_cost():
    run = build_run("demo")
    own = replace(
        run.teachers["teacher"],
        model_args=run.teachers["teacher"].model_args | {"patch_size": 6},
        image_size=42,
        checkpoint="random",
    )
    pair = build_models(replace(run, teachers={"teacher": own}, debug=True)).pairs["teacher"]
    assert pair.teacher_grid == pair.student_grid == (7, 7)
    larger = replace(
        run, teachers={"teacher": replace(run.teachers["teacher"], image_size=56, checkpoint="random")}, debug=True
    )
    assert build_models(larger).pairs["teacher"].teacher_grid == (14, 14)
    assert model_costs(larger)["teacher"]["tokens"] == 197 and model_costs(larger)["student"]["tokens"] == 50
    with pytest.raises(ValueError, match="teacher.image_size must be a multiple of the patch size"):
        build_models(replace(run, teachers={"teacher": replace(larger.teachers["teacher"], image_size=30)}, debug=True))


def test_a_licence_is_stated_only_for_timms_weights(tmp_path):
    path = str(save("dinov3", tmp_path))
    assert license_of(TeacherConfig(model=DINO)) == license_of(TeacherConfig(model=DINO, checkpoint=path))
    assert license_of(TeacherConfig(model=DINO)) == "dinov3-license"
    assert license_of(TeacherConfig(model=DINO.partition(".")[0], checkpoint=path)) is None, "weights from anywhere"
    assert license_of(build_run("demo").teachers["teacher"]) is None
    (tmp_path / "dinov3.json").write_text(json.dumps({"recipe": "images"}))
    assert license_of(TeacherConfig(model=DINO, checkpoint=path)) is None, "weights trained here"
    of_dino = {"recipe": "images", "teacher": {"model": DINO, "license": "dinov3-license"}}
    (tmp_path / "dinov3.json").write_text(json.dumps(of_dino))
    assert license_of(TeacherConfig(model="deit_tiny_patch16_224", checkpoint=path)) == "dinov3-license"
    of_three = {"recipe": "images", "teachers": {name: {"license": name} for name in ("mit", None, "apache-2.0")}}
    (tmp_path / "dinov3.json").write_text(json.dumps(of_three).replace('"null": {"license": null}', '"x": {}'))
    assert license_of(TeacherConfig(model="deit_tiny_patch16_224", checkpoint=path)) == "mit, apache-2.0"


def test_batch_norm_students_are_rejected_and_block_terms_need_vision_transformers():
    data = DataConfig(train="", val="", image_size=64, num_classes=10)
    with pytest.raises(ValueError, match="student.model=resnet18 has batch norm"):
        build_student(StudentConfig(model="resnet18"), data, needs_blocks=False)
    with pytest.raises(ValueError, match="must be a timm VisionTransformer or Eva, got convnext_atto, a ConvNeXt"):
        build_student(StudentConfig(model="convnext_atto"), data)
    assert build_student(StudentConfig(model="convnext_atto"), data, needs_blocks=False).num_classes == 10


def test_an_eva_pair_trains_resumes_bit_for_bit_evaluates_and_exports(tmp_path, demo_cache):
    torch.manual_seed(0)
    large = ARGS | {"embed_dim": 96, "depth": 4}
    teacher = timm.create_model("vit_small_patch16_dinov3", img_size=42, num_classes=0, **large | {"patch_size": 6})
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.2)  # timm's own LayerScale would give all images the same class token
    save_file({key: t.contiguous() for key, t in teacher.state_dict().items()}, tmp_path / "teacher.safetensors")
    save_file({"weight": torch.randn(10, 96), "bias": torch.zeros(10)}, tmp_path / "head.safetensors")
    pair = [
        "--recipe=demo", "--debug", "--eval_every_epochs=0", "--optim.warmup_epochs=0", "--checkpoint.every_steps=2",
        "--student.model=vit_tiny_patch16_dinov3_qkvb", f"--student.model_args={json.dumps(ARGS)}",
        f"--teacher.model={DINO}", f"--teacher.model_args={json.dumps(large | {'patch_size': 6})}",
        f"--teacher.checkpoint={tmp_path / 'teacher.safetensors'}", f"--teacher.head={tmp_path / 'head.safetensors'}",
        "--teacher.image_size=42", "--losses.feature.weight=1", "--losses.relation.weight=1",
        "--losses.feature.calibration_batches=2",
    ]  # fmt: skip
    whole, half = ([*pair, f"--workdir={tmp_path / name}"] for name in ("whole", "halves"))
    commands = [[*whole, "--max_steps=4"], [*half, "--max_steps=2"], [*half, "--max_steps=4", "--extend"]]
    # An extended run has a different schedule, so the learning rate must not fall.
    commands = [[*each, "--optim.min_lr=1.5e-3"] for each in commands]
    outcomes = run_several(2, tmp_path / "commands", commands)
    said = outcomes[0]["said"]
    assert "(licence: dinov3-license)" in said and "GFLOPs per 42-px image" in said, said[-3000:]
    found, resumed = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "halves"))
    assert found.keys() == resumed.keys() and all(torch.equal(t, resumed[key]) for key, t in found.items())
    description = json.loads((tmp_path / "whole" / "student.json").read_text())
    assert description["teacher"] == {"model": DINO, "license": "dinov3-license"}
    student = timm.create_model(description["model"], **description["args"])
    student.load_state_dict(found)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert {"student_top1", "teacher_top1", "agreement"} <= summary.keys()


OTHER_TEACHERS = [("swin_tiny_patch4_window7_224", 64), ("cait_xxs24_224", 32)]
OTHER_STUDENTS = [("swin_tiny_patch4_window7_224", "use"), ("convnext_atto", "ignore")]


@pytest.mark.parametrize("model, size", [("convnext_atto", 32), ("regnety_002", 32), *costly(OTHER_TEACHERS)])
def test_teachers_of_other_families_train_one_step(tmp_path, demo_cache, model, size):
    command = [
        "--recipe=demo", "--debug", "--max_steps=1", "--optim.warmup_epochs=0", f"--workdir={tmp_path / 'run'}",
        f"--teacher.model={model}", "--teacher.model_args={}", "--teacher.checkpoint=random",
        "--data.max_val_images=48",
        f"--teacher.image_size={size}", "--losses.vitkd.weight=0", "--losses.vkd.weight=1", "--losses.feature.weight=1",
        "--losses.feature.calibration_batches=1",
    ]  # fmt: skip
    (outcome,) = run_several(1, tmp_path / "commands", [command])
    assert f"teacher: {model}" in outcome["said"] and f"per {size}-px image" in outcome["said"]
    assert outcome["summary"]["steps"] == 1


def test_a_teacher_with_buffers_derived_from_weights_is_read_completely_and_trains_one_step(tmp_path, demo_cache):
    name, args = "vit_small_patch16_rope_mixed_224", {"embed_dim": 48, "depth": 2, "num_heads": 2, "patch_size": 7}
    teacher = timm.create_model(name, img_size=28, num_classes=10, **args)
    save_file({key: value.contiguous() for key, value in teacher.state_dict().items()}, tmp_path / "own.safetensors")
    command = [
        "--recipe=demo", "--debug", "--max_steps=1", "--optim.warmup_epochs=0", "--log_every_steps=1",
        f"--teacher.model={name}", f"--teacher.model_args={json.dumps(args)}", "--data.max_val_images=48",
        f"--teacher.checkpoint={tmp_path / 'own.safetensors'}", "--losses.vitkd.weight=0",
    ]  # fmt: skip
    placements = ("shard", "replica")
    commands = [[*command, f"--teacher.placement={each}", f"--workdir={tmp_path / each}"] for each in placements]
    outcomes = run_several(2, tmp_path / "commands", commands)
    assert "computes buffers from its weights, so each rank reads all of them" in outcomes[0]["said"]
    shard, replica = (numerics_of(tmp_path / each) for each in placements)
    assert shard == replica and shard[0]["nkd"] > 0


@pytest.mark.parametrize("model, labels", [("convnext_atto", "use"), *costly(OTHER_STUDENTS)])
def test_students_of_other_families_train_and_are_rebuilt_by_timm(tmp_path, demo_cache, model, labels):
    terms = {"use": "--losses.nkd.weight=1", "ignore": "--losses.ce.weight=0"}
    small = {"depths": [1, 1, 1, 1]}
    command = [
        "--recipe=demo", "--debug", "--max_steps=1", "--optim.warmup_epochs=0", f"--workdir={tmp_path / 'run'}",
        f"--student.model={model}", f"--student.model_args={json.dumps(small)}", "--data.image_size=64",
        "--teacher.checkpoint=random", "--data.max_val_images=48", "--losses.vitkd.weight=0", "--losses.nkd.weight=0",
        "--losses.feature.weight=1", "--losses.feature.calibration_batches=1", f"--data.labels={labels}",
        f"--data.num_classes={10 if labels == 'use' else 0}", terms[labels],
    ]  # fmt: skip
    (outcome,) = run_several(1, tmp_path / "commands", [command])
    description = json.loads((tmp_path / "run" / "student.json").read_text())
    student = timm.create_model(description["model"], **description["args"])
    student.load_state_dict(load_file(tmp_path / "run" / "student.safetensors"))
    if labels == "ignore":
        expected = {"pooled": "average of the positions", "num_prefix_tokens": 0, "width": student.num_features}
        assert description["features"] == expected
    exported = build_exported(description, tmp_path / "run" / "student.safetensors")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(exported.eval()(images), student.eval()(images))
