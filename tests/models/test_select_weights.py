"""Weights selected from a larger model, compared with a plain form of the source's rule and with the larger model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.commands.test_evaluate import write_export
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.config.selected import DEMO_TEACHER, source_of
from vitkd_ds.models.build import build_student, normalization_of, statistics_of
from vitkd_ds.models.select_weights import indices, select_weights
from vitkd_ds.recipes import build_run
from vitkd_ds.train.identity import weights_of

SMALL = {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2, "num_classes": 5}
WIDE = {"img_size": 32, "embed_dim": 96, "num_heads": 6, "depth": 4, "num_classes": 7}
EVA = ["eva02_base_patch14_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_pe_core_tiny_patch16_384"]


def make(name, **arguments):
    """Build a timm model in which every weight is a distinct random number."""
    if "patch14" in name:
        arguments["img_size"] = 28
    model = timm.create_model(name, **arguments).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, dtype=torch.float64))
    return model


def of_every_dimension(tensor, shape):
    """Select k * (w // s) in every dimension, as the source does for any tensor."""
    for dim, (wide, narrow) in enumerate(zip(tensor.shape, shape)):
        tensor = tensor.index_select(dim, torch.tensor([k * (wide // narrow) for k in range(narrow)]))
    return tensor


def rows_of_heads(heads, head_dim, parts, size):
    """Return the row numbers of whole heads in `parts` stacked parts of `size` rows."""
    return [part * size + head * head_dim + row for part in range(parts) for head in heads for row in range(head_dim)]


def test_every_tensor_but_the_classifier_equals_that_of_the_source():
    student, source = make("deit_tiny_patch16_224", **SMALL), make("deit_tiny_patch16_224", **WIDE)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    said = select_weights(student, source, heads="even", blocks="first")
    for name, tensor in student.state_dict().items():
        is_head = name.startswith("head.")
        expected = before[name] if is_head else of_every_dimension(source.state_dict()[name], tensor.shape)
        assert torch.equal(tensor, expected), name
    assert said == (
        "48 of 96 channels, 3 of 6 heads (even), 192 of 384 hidden units, and blocks 0, 1 of 4; random: head.weight, "
        "head.bias"
    )


def test_whole_heads_are_the_same_rows_of_queries_keys_and_values_and_columns_of_proj():
    student, source = make("deit_tiny_patch16_224", **SMALL), make("deit_tiny_patch16_224", **WIDE)
    select_weights(student, source, heads="whole", blocks="even")
    for number, block in enumerate((0, 2)):
        own, wide = student.blocks[number].attn, source.blocks[block].attn
        rows = rows_of_heads([0, 2, 4], 16, parts=3, size=96)
        assert torch.equal(own.qkv.weight, wide.qkv.weight[rows][:, ::2])
        assert torch.equal(own.qkv.bias, wide.qkv.bias[rows])
        assert torch.equal(own.proj.weight, wide.proj.weight[::2][:, rows_of_heads([0, 2, 4], 16, 1, 96)])


@pytest.mark.parametrize("source, student", [
    ("deit3_small_patch16_224", "deit_tiny_patch16_224"), ("deit_tiny_patch16_224", "deit3_small_patch16_224"),
])  # fmt: skip
@pytest.mark.parametrize("options", [{}, {"proj_bias": False}])
def test_layer_scale_and_the_class_tokens_position_are_folded_exactly(source, student, options):
    student, source = make(student, **SMALL, **options), make(source, **SMALL, **options)
    images = torch.randn(2, 3, 32, 32)
    for model in (student, source):
        model.double()
    select_weights(student, source, heads="whole", blocks="first")
    with torch.no_grad():
        found, expected = (model.forward_features(images.double()) for model in (student, source))
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("name", EVA)
def test_a_model_selected_at_full_size_is_the_source_itself_also_for_class_eva(name):
    sizes = {key: value for key, value in WIDE.items() if key != "num_classes"} | {"num_classes": 0}
    student, source = make(name, **sizes), make(name, **sizes)
    select_weights(student, source, heads="whole", blocks="even")
    size = 28 if "patch14" in name else 32
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(student.forward_features(images), source.forward_features(images))


@pytest.mark.parametrize("name", EVA[:2])
def test_gates_and_values_of_a_gated_mlp_share_the_hidden_units_of_fc2(name):
    sizes = {"depth": 1, "num_classes": 0}
    student = make(name, embed_dim=48, num_heads=3, **sizes)
    source = make(name, embed_dim=96, num_heads=6, **sizes)
    select_weights(student, source, heads="whole", blocks="first")
    own, wide = (model.blocks[0] for model in (student, source))
    narrow, hidden = (block.mlp.fc2.in_features for block in (own, wide))
    assert (narrow, hidden) == (128, 256)
    assert torch.equal(own.mlp.fc2.weight, wide.mlp.fc2.weight[::2, ::2])
    if hasattr(own.mlp, "fc1"):
        assert torch.equal(own.mlp.fc1.weight, wide.mlp.fc1.weight[::2, ::2]), "both halves, each from its half"
    else:
        assert torch.equal(own.mlp.fc1_g.weight, wide.mlp.fc1_g.weight[::2, ::2])
        assert torch.equal(own.mlp.fc1_x.bias, wide.mlp.fc1_x.bias[::2])
        assert torch.equal(own.mlp.norm.weight, wide.mlp.norm.weight[::2])
    rows = rows_of_heads([0, 2, 4], 16, parts=1, size=96)
    if hasattr(own.attn, "q_bias") and own.attn.q_bias is not None:
        assert torch.equal(own.attn.v_bias, wide.attn.v_bias[rows])
    else:
        assert torch.equal(own.attn.k_proj.weight, wide.attn.k_proj.weight[rows][:, ::2])


@pytest.mark.parametrize("size, wanted", [(12, 12), (12, 4), (12, 5), (7, 3), (5, 1), (768, 192), (384, 192), (10, 9)])
def test_indices_are_multiples_if_they_can_be_and_else_evenly_spread(size, wanted):
    step = size // wanted if size % wanted == 0 else (size - 1) / (wanted - 1)
    expected = [round(k * step) for k in range(wanted)]
    assert indices(size, wanted).tolist() == expected == sorted(set(expected))
    assert indices(size, wanted).dtype == torch.int64 and np.diff(expected, append=size).min() >= 1


@pytest.mark.parametrize("student, source, options, message", [
    ({"embed_dim": 192, "num_heads": 6}, {}, {}, "larger than the model .*: cannot select 32 of 16. Choose"),
    ({"depth": 5}, {}, {}, "larger than the model .*: cannot select 5 of 4"),
    ({"img_size": 48}, {}, {}, r"\(3, 3\)\), but those of the model .* are \(\(16, 16\), \(2, 2\)\)"),
    ({"qkv_bias": False}, {}, {}, "differ in attn.qkv.bias"),
    ({"in_chans": 1}, {}, {}, r"patch_embed.proj.weight has shape \(48, 1, 16, 16\), but its .* \(48, 3, 16, 16\)"),
    ({"name": EVA[2]}, {}, {}, "student is of class Eva, and .* of class VisionTr"),
    ({"name": "cait_xxs24_224"}, {}, {}, "student is of class Cait"),
    ({"name": EVA[2]}, {"name": EVA[2]}, {"heads": "even"}, "^rotary .* need whole .* got student.select_heads=even"),
    ({"name": EVA[2], "num_heads": 1}, {"name": EVA[2]}, {}, "^rotary .* and 48 channels per head for 16"),
])  # fmt: skip
def test_models_that_differ_in_more_than_size_are_rejected(student, source, options, message):
    student, source = (
        SMALL | {"name": "deit_tiny_patch16_224"} | student,
        WIDE | {"name": "deit_tiny_patch16_224"} | source,
    )
    models = [make(sizes.pop("name"), **sizes) for sizes in (student, source)]
    before = {name: tensor.clone() for name, tensor in models[0].state_dict().items()}
    with pytest.raises(ValueError, match=message):
        select_weights(*models, **{"heads": "whole", "blocks": "first"} | options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in models[0].state_dict().items())


def test_the_student_of_a_run_starts_with_selected_weights_and_the_sources_normalisation(tmp_path, caplog):
    caplog.set_level("INFO")
    source = make("deit3_small_patch16_224", **WIDE)
    save_file(source.state_dict(), tmp_path / "wide.safetensors")
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    described = {"model": "deit3_small_patch16_224", "args": WIDE, "normalization": statistics}
    (tmp_path / "wide.json").write_text(json.dumps(described))
    own = {key: SMALL[key] for key in ("embed_dim", "num_heads", "depth")}
    data = DataConfig("", "", image_size=32, num_classes=5)
    args = {key: WIDE[key] for key in own}
    file = str(tmp_path / "wide.safetensors")
    teachers = {"wide": TeacherConfig("deit3_small_patch16_224", args, file, placement="replica", image_size=48)}
    expected = make("deit_tiny_patch16_224", **SMALL)
    select_weights(expected, source, heads="even", blocks="even")
    for place in ("wide", file):
        choices = {"select_heads": "even", "select_blocks": "even"}
        config = StudentConfig("deit_tiny_patch16_224", own, f"select:{place}", **choices)
        student = build_student(config, data, teachers=teachers)
        assert f"student.init=select:{place}: 48 of 96 channels, 3 of 6 heads (even)" in caplog.text
        state = expected.state_dict()
        assert all(torch.equal(w, state[n]) for n, w in student.state_dict().items() if not n.startswith("head"))
        found = normalization_of(student)
        assert (found.mean, found.std) == statistics_of(config, teachers) == ((0.1, 0.2, 0.3), (1, 2, 3))
    torch.manual_seed(0)
    for options, message in {
        "select:wide": r"student.init=select:wide: the student is larger .* cannot select 3 of 2",
        "select:hub:deit_nano": "^student.init=select:hub:deit_nano: deit_nano is not a timm model",
        "select:hub:deit3_small_patch16_224.x": "^student.init=select:hub:deit3_small_patch16_224.x: .* names weights",
    }.items():
        shallow = {"wide": replace(teachers["wide"], model_args=args | {"depth": 2}, checkpoint="random")}
        deep = StudentConfig("deit_tiny_patch16_224", own | {"depth": 3}, options)
        with pytest.raises(ValueError, match=message):
            build_student(deep, data, teachers=shallow)
        if "hub" in options:
            with pytest.raises(ValueError, match=message):
                statistics_of(deep)


def test_a_path_is_resolved_a_teacher_is_not_and_both_keep_the_students_model(tmp_path):
    write_export(tmp_path / "student")
    file = tmp_path / "student" / "student.safetensors"
    run = apply_options(build_run("demo"), {"student.init": f"select:{tmp_path}/student"})
    assert run.student == replace(build_run("demo").student, init=f"select:{file}")
    assert source_of(run.student.init, run.teachers).checkpoint == str(file)
    assert weights_of(run)["student.init"] != weights_of(build_run("demo"))["teacher.checkpoint"]
    taught = apply_options(build_run("demo"), {"student.init": "select:teacher"})
    assert taught.student == replace(build_run("demo").student, init="select:teacher")
    assert weights_of(taught) == weights_of(build_run("demo")) | {
        "student.init": weights_of(taught)["teacher.checkpoint"]
    }
    assert source_of("select:hub:deit3_small_patch16_224", {}).checkpoint == "hub"
    with pytest.raises(
        ValueError, match=f"^--student.init=select:{tmp_path}/nothing: no weight file, run, .* at {tmp_path}/nothing"
    ):
        apply_options(build_run("demo"), {"student.init": f"select:{tmp_path}/nothing"})
    for options, message in {
        (
            "none",
            "teacher",
        ): "select:teacher: teacher is not a teacher of this run, because it has no teacher, and",
        (
            "",
            "big",
        ): "select:big: big is not a teacher of this run, because its teachers are teacher, and no",
    }.items():
        flags = {"student.init": f"select:{options[1]}"} | ({"teacher": "none"} if options[0] else {})
        with pytest.raises(ValueError, match=message):
            apply_options(build_run("demo"), flags)
    for value, problem in (
        ("", "names no model"),
        ("hub:", "names no model"),
        (tmp_path, ".* is not a run, checkpoint"),
    ):
        with pytest.raises(ValueError, match=f"^--student.init=select:{value}:? {problem}"):
            apply_options(build_run("demo"), {"student.init": f"select:{value}"})
    file.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"student.safetensors has no description of its model. Pass a run, a"):
        source_of(f"select:{file}", {})


def test_demo_selects_from_the_packaged_teacher_and_the_recipe_demo_fast_uses_it():
    run = build_run("demo_fast")
    assert apply_options(run, {"student.init": "select:demo"}) == run, "a run without a teacher accepts it"
    told = replace(run.student, init=f"select:{DEMO_TEACHER}")
    students = [build_student(config, run.data) for config in (run.student, told)]
    theirs = timm.create_model("deit_tiny_patch16_224", **run.student.model_args, img_size=28, num_classes=10)
    for name, weight in students[0].state_dict().items():
        assert name.startswith("head.") or torch.equal(weight, students[1].state_dict()[name]), name
        assert weight.shape == theirs.state_dict()[name].shape
    assert not torch.equal(students[0].blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
