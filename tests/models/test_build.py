"""Models are built as configured from every weight format; weights that do not fit are an error naming the key."""

import dataclasses
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import _builder

from tests.models.families import FAMILIES, SMALL, source_model
from vitkd_ds.config.losses import LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.models import build, hub
from vitkd_ds.models.build import build_student, build_teacher, normalization_of, statistics_of
from vitkd_ds.models.create import default_model, model_args_of
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.models.pair import check_pair

DATA = DataConfig(train="demo", val="demo", image_size=32, num_classes=5)
TINY = "deit_tiny_patch16_224"
IMAGENET_DATA = DataConfig(train="demo", val="demo", image_size=224, num_classes=1000)
VITKD = LossesConfig(vitkd=ViTKDTerm(weight=1))


def teacher_of(family: str, checkpoint, **changes):
    name, model_args = FAMILIES[family]
    config = {"model": name, "model_args": model_args, "checkpoint": str(checkpoint), **changes}
    return build_teacher(TeacherConfig(**config), DATA)


def student_of(family: str, init="", **changes):
    name, model_args = FAMILIES[family]
    return build_student(StudentConfig(**{"model": name, "model_args": model_args, "init": str(init), **changes}), DATA)


def save(state: dict[str, torch.Tensor], folder):
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def test_the_teacher_is_frozen_in_eval_mode_and_the_student_trains():
    teacher = teacher_of("deit3", "random")
    assert not teacher.training and not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    student = student_of("deit", drop_path_rate=0.2)
    assert student.training and all(parameter.requires_grad for parameter in student.parameters())
    assert student.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2) and not student.grad_checkpointing
    assert student_of("deit", checkpoint_activations=True).grad_checkpointing


@pytest.mark.parametrize("name", ["deit3_small", "deit3_base", "deit3_large"])
def test_the_recipes_teachers_exist_with_their_resolution_and_classes(name):
    model = default_model(f"{name}_patch16_224.fb_in22k_ft_in1k", role="teacher")
    assert model.pretrained_cfg["input_size"] == (3, 224, 224) and model.num_classes == 1000


def test_the_demo_teacher_comes_from_the_package(tmp_path, monkeypatch):
    source = source_model("deit")
    monkeypatch.setattr(build, "DEMO_TEACHER", save(source.state_dict(), tmp_path))
    teacher = teacher_of("deit", "demo")
    assert torch.equal(teacher.head.weight, source.head.weight)


def test_the_export_arguments_rebuild_the_model():
    name, model_args = FAMILIES["registers"]
    config = StudentConfig(model=name, model_args=model_args, drop_path_rate=0.1)
    made = model_args_of(config, DATA)
    assert made == {"model": name, "args": {"num_classes": 5, "img_size": 32, **model_args}}
    rebuilt = timm.create_model(made["model"], **made["args"])
    rebuilt.load_state_dict(build_student(config, DATA).state_dict())


def hub_with(monkeypatch, state: dict[str, torch.Tensor]) -> None:
    """Let timm's own loading code find `state` where it would ask the network."""
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda *args, **kwargs: None)
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *args, **kwargs: dict(state))


def test_hub_weights_come_through_timm(monkeypatch):
    source = timm.create_model(TINY)
    hub_with(monkeypatch, source.state_dict())
    teacher = build_teacher(TeacherConfig(model=TINY), IMAGENET_DATA)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in teacher.state_dict().items())
    few_classes = dataclasses.replace(IMAGENET_DATA, num_classes=5)
    student = build_student(StudentConfig(model=TINY, init="hub"), few_classes)
    assert torch.equal(student.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    assert student.head.weight.shape == (5, 192)
    with pytest.raises(ValueError, match="teacher.checkpoint=hub .*num_classes=5 .*got 1000"):
        build_teacher(TeacherConfig(model=TINY), few_classes)
    with pytest.raises(ValueError, match="student.model=deit_tiny.*'depth': 2.*Unexpected key"):
        build_student(StudentConfig(model=TINY, init="hub", model_args={"depth": 2}), IMAGENET_DATA)


def test_hub_weights_with_another_resolution_or_patch_size_are_rejected_unless_allowed(monkeypatch):
    data = dataclasses.replace(IMAGENET_DATA, image_size=64)
    with pytest.raises(ValueError, match="image_size=64, got 224 x 224 .*teacher.allow_other_resolution=true"):
        build_teacher(TeacherConfig(model=TINY), data)
    with pytest.raises(ValueError, match="student.model_args must not set patch_size .* with student.init=hub"):
        student_of("deit", "hub")
    with pytest.raises(ValueError, match="student.init=hub .*got 224 x 224") as refusal:
        build_student(StudentConfig(model=TINY, init="hub"), data)
    assert "--student.allow_other_resolution=true" in str(refusal.value)
    hub_with(monkeypatch, timm.create_model(TINY).state_dict())
    teacher = build_teacher(TeacherConfig(model=TINY, allow_other_resolution=True), data)
    student = build_student(StudentConfig(model=TINY, init="hub", allow_other_resolution=True), data)
    assert teacher.patch_embed.grid_size == (4, 4) and teacher.pos_embed.shape == (1, 17, 192)
    assert torch.equal(student.pos_embed, teacher.pos_embed)


def test_an_unreachable_hub_gives_an_error_that_names_the_model(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route")

    hub_with(monkeypatch, {})
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", unreachable)
    with pytest.raises(ValueError, match="teacher.model=deit_tiny.*no route.*pass the file"):
        build_teacher(TeacherConfig(model=TINY), IMAGENET_DATA)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_with_another_resolution_is_rejected_unless_allowed(tmp_path, family):
    source = source_model(family, image_size=48)
    path = save(source.state_dict(), tmp_path)
    with pytest.raises(ValueError, match=r"4 x 4 patches\), got 6 x 6 .*48 x 48 pixels.*allow_other_resolution"):
        teacher_of(family, path)
    with pytest.raises(ValueError, match=r"student.init=.*got 6 x 6 patches"):
        student_of(family, path)
    teacher = teacher_of(family, path, allow_other_resolution=True)
    student = student_of(family, path, allow_other_resolution=True)
    assert torch.equal(student.pos_embed, teacher.pos_embed)
    num_prefix = 0 if teacher.no_embed_class else teacher.num_prefix_tokens
    expected = timm.layers.resample_abs_pos_embed(source.pos_embed, new_size=[4, 4], num_prefix_tokens=num_prefix)
    assert torch.equal(teacher.pos_embed, expected)
    assert torch.equal(teacher.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)


@pytest.mark.parametrize("changes, removed, added, message", [
    ({"depth": 3}, (), {}, r"12 unexpected: blocks.2.attn.proj.bias, .*, \.\.\."),
    ({}, ["norm.bias"], {"strange.weight": (1,)}, "1 missing: norm.bias; 1 unexpected: strange.weight"),
    ({}, (), {"pre_logits.fc.weight": (48, 48)}, "1 unexpected: pre_logits.fc.weight"),  # timm's filter would drop it
    ({"patch_size": 4}, (), {}, r"patch_embed.proj.weight \(48, 3, 4, 4\) for \(48, 3, 8, 8\)"),  # and resize this one
    ({"no_embed_class": True}, (), {}, "must have 17 positions .*got 16"),  # from another kind of model
])  # fmt: skip
def test_a_file_that_does_not_fit_is_rejected_with_its_keys_and_never_adapted(
    tmp_path, changes, removed, added, message
):
    state = source_model("deit", **changes).state_dict() | {key: torch.zeros(shape) for key, shape in added.items()}
    path = save({key: tensor for key, tensor in state.items() if key not in removed}, tmp_path)
    with pytest.raises(ValueError, match=f"student.init.*{message}"):
        student_of("deit", path)
    for allowed in (False, True):
        with pytest.raises(ValueError, match=f"teacher.checkpoint.*{message}"):
            teacher_of("deit", path, allow_other_resolution=allowed)


@pytest.mark.parametrize(
    "num_classes, said", [(7, "has 7 classes, but the data has 5"), (0, "has no classifier, but the")]
)
def test_a_classifier_for_other_classes_is_dropped_and_reported(tmp_path, caplog, num_classes, said):
    source = source_model("deit", num_classes=num_classes)
    path = save(source.state_dict(), tmp_path)
    with caplog.at_level("INFO", "vitkd_ds"):
        torch.manual_seed(0)
        student = student_of("deit", path)
    assert f"student.init={path} {said}" in caplog.text and ": dropping its classifier" in caplog.text
    torch.manual_seed(0)
    fresh = student_of("deit").state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, fresh[name] if name.startswith("head.") else source.state_dict()[name]), name
    with pytest.raises(ValueError, match="teacher.checkpoint=.* does not fit the configured model.*head.weight"):
        teacher_of("deit", path)
    caplog.clear()
    config = TeacherConfig(model=FAMILIES["deit"][0], model_args=FAMILIES["deit"][1], checkpoint=str(path))
    with caplog.at_level("INFO", "vitkd_ds"):
        teacher = build_teacher(config, DATA, needs_logits=False)
    assert f"teacher.checkpoint={path} {said}" in caplog.text
    assert teacher.num_classes == 0 and not any(name.startswith("head.") for name in teacher.state_dict())
    assert torch.equal(teacher.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)
    info = check_pair(student, teacher, VITKD, image_size=32)
    assert info.teacher_dim == 48


@pytest.mark.parametrize("names, is_kept", [
    ("abcde", True), ("abcdx", False), ("abced", False), (None, True),
])  # fmt: skip
def test_a_students_classifier_is_kept_only_for_the_classes_that_it_was_trained_for(tmp_path, caplog, names, is_kept):
    path = save(source_model("deit").state_dict(), tmp_path)
    if names:
        path.with_suffix(".json").write_text(json.dumps({"classes": list(names)}))
    config = StudentConfig(*FAMILIES["deit"], init=str(path))
    with caplog.at_level("INFO", "vitkd_ds"):
        student = build_student(config, DATA, classes=tuple("abcde"))
    assert torch.equal(student.head.weight, source_model("deit").head.weight) == is_kept
    assert ("has other classes than the data: dropping its classifier" in caplog.text) != is_kept
    assert torch.equal(student.norm.weight, source_model("deit").norm.weight)


def test_a_file_with_another_width_is_rejected_without_mentioning_its_classes(tmp_path, caplog):
    path = save(source_model("deit", embed_dim=96).state_dict(), tmp_path)
    with caplog.at_level("INFO", "vitkd_ds"), pytest.raises(ValueError, match="student.init=.* does not fit"):
        student_of("deit", path)
    assert "classifier" not in caplog.text
    (tmp_path / "headless").mkdir()
    state = source_model("deit").state_dict()
    path = save({name: tensor for name, tensor in state.items() if name != "head.bias"}, tmp_path / "headless")
    with caplog.at_level("INFO", "vitkd_ds"):
        student_of("deit", path)
    assert "has a classifier of shapes [(5, 48)], but [(5, 48), (5,)] is needed" in caplog.text


def test_a_matching_classifier_is_kept_even_if_not_needed(tmp_path):
    source = source_model("deit")
    config = TeacherConfig(*FAMILIES["deit"], checkpoint=str(save(source.state_dict(), tmp_path)))
    teacher = build_teacher(config, DATA, needs_logits=False)
    assert teacher.num_classes == 5 and torch.equal(teacher.head.weight, source.head.weight)


def test_a_hub_teacher_for_other_classes_loses_its_classifier_if_not_needed(monkeypatch):
    source = timm.create_model(TINY)
    hub_with(monkeypatch, source.state_dict())
    few_classes = dataclasses.replace(IMAGENET_DATA, num_classes=5)
    teacher = build_teacher(TeacherConfig(model=TINY), few_classes, needs_logits=False)
    assert teacher.num_classes == 0 and torch.equal(teacher.norm.weight, source.norm.weight)
    assert build_teacher(TeacherConfig(model=TINY), IMAGENET_DATA, needs_logits=False).num_classes == 1000


@pytest.mark.parametrize("name, data", [
    ("convnext_atto", DATA), ("regnety_002", DATA),
    ("swin_tiny_patch4_window7_224", dataclasses.replace(DATA, image_size=224)),
])  # fmt: skip
def test_a_teacher_of_logits_may_be_any_timm_model(tmp_path, name, data):
    source = timm.create_model(name, num_classes=5)
    config = TeacherConfig(model=name, checkpoint=str(save(source.state_dict(), tmp_path)))
    teacher = build_teacher(config, data, needs_blocks=False)
    assert all(torch.equal(tensor, source.state_dict()[key]) for key, tensor in teacher.state_dict().items())
    images = torch.randn(2, 3, data.image_size, data.image_size)
    assert torch.equal(teacher(images), source.eval()(images)) and teacher(images).shape == (2, 5)
    student = build_student(StudentConfig(model=TINY, model_args={"patch_size": 16}), data)
    assert check_pair(student, teacher, LossesConfig(nkd=NKDTerm(weight=1)), image_size=data.image_size) is None
    with pytest.raises(
        ValueError, match=f"teacher.model must be a timm Vis.*{name}.*switch off the terms that compare blocks"
    ):
        build_teacher(config, data)


def test_the_normalisation_comes_from_the_description_next_to_the_weights(tmp_path):
    path = save(source_model("deit").state_dict(), tmp_path)
    path.with_suffix(".json").write_text(json.dumps({"normalization": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}))
    expected = Normalization(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert normalization_of(student_of("deit", path)) == normalization_of(teacher_of("deit", path)) == expected
    assert normalization_of(student_of("deit")) != expected


def test_half_precision_files_load_into_fp32_models(tmp_path):
    source = source_model("deit").half()
    model = student_of("deit", save(source.state_dict(), tmp_path))
    assert model.head.weight.dtype == torch.float32 and torch.equal(model.head.weight, source.head.weight.float())


@pytest.mark.parametrize("name, model_args, message", [
    ("deit_tiny_patch16_244", {}, "student.model=deit_tiny_patch16_244 is not a timm model; did you mean deit_tiny"),
    ("diet_tiny_patch16_224", {}, "did you mean deit_tiny_patch16_224"),
    ("deit3_small_patch16_224.fb_in21k", {}, "Choose one of deit3_small_patch16_224.fb_in1k, .*fb_in22k_ft_in1k"),
    ("hf-hub:someone/model", {}, "is not a timm model"),
    ("resnet18", {}, "resnet18, a ResNet"),
    ("swin_tiny_patch4_window7_224", {}, "a SwinTransformer"),
    ("vit_relpos_small_patch16_224", {}, "a VisionTransformerRelPos"),
    (TINY, {"embed_dims": 48}, "student.model_args: embed_dims is not an argument of .*; did you mean embed_dim"),
    (TINY, {"features_only": True}, ": features_only is no"),
    (TINY, {"checkpoint_path": "x.pth"}, ": checkpoint_path is no"),
    (TINY, {"pretrained_cfg": {"file": "x.pth"}}, ": pretrained_cfg is no"),
    (TINY, {"cache_dir": "x"}, ": cache_dir is no"),
    (TINY, {"num_classes": 3}, "must not set num_classes .got 3.: it is set by data.num_classes"),
    (TINY, {"img_size": 64}, "it is set by data.image_size"),
    (TINY, {"patch_drop_rate": 0.5}, "must not set patch_drop_rate .got 0.5.: .*tokens would not match"),
    (TINY, {**SMALL, "num_heads": 5}, "timm cannot build student.model=deit_tiny_patch16_224 with"),
    (TINY, {**SMALL, "patch_size": (8, 12)}, r"data.image_size must be a multiple .*8 x 12.*got 32"),
    (TINY, {**SMALL, "patch_size": 12}, r"data.image_size must be a multiple .*12 x 12.*got 32"),
])  # fmt: skip
def test_other_models_and_arguments_are_rejected_by_name(name, model_args, message):
    with pytest.raises(ValueError, match=message):
        build_student(StudentConfig(model=name, model_args=model_args), DATA)


def test_each_models_normalisation_comes_from_its_timm_configuration():
    imagenet = Normalization(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert normalization_of(source_model("deit")) == imagenet
    assert normalization_of(source_model("registers")) == Normalization(mean=(0.5,) * 3, std=(0.5,) * 3)


def test_a_students_statistics_match_the_built_model(tmp_path):
    assert statistics_of(StudentConfig(model="vit_tiny_patch16_224")) == ((0.5,) * 3, (0.5,) * 3)
    path = save(source_model("deit").state_dict(), tmp_path)
    path.with_suffix(".json").write_text(json.dumps({"normalization": {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}}))
    for init in ("", str(path)):
        config = StudentConfig(model=TINY, model_args=SMALL, init=init)
        expected = normalization_of(build_student(config, DATA))
        assert statistics_of(config) == (expected.mean, expected.std)
