"""Files in every format are converted to timm's keys; a file that would run code is rejected unexecuted."""

import argparse
import fractions
import os
import pickle
import re
import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import VisionTransformer

from tests.models.families import FAMILIES, source_model
from vitkd_ds.config.run import DataConfig, TeacherConfig
from vitkd_ds.models.build import build_teacher
from vitkd_ds.models.weights import key_differences, load_state_dict_file, strip_prefixes, timm_keys


def small_state() -> dict[str, torch.Tensor]:
    return {"cls_token": torch.randn(1, 1, 4), "norm.weight": torch.randn(4), "head.weight": torch.randn(3, 4)}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("container", ["", "model", "state_dict", "model_state_dict", "model_ema"])
def test_pickles_are_read_plain_or_from_a_container_that_takes_precedence_over_an_average(tmp_path, suffix, container):
    state, path = small_state(), tmp_path / f"checkpoint{suffix}"
    torch.save({"model_ema": small_state(), container: state, "epoch": 3} if container else state, path)
    assert_same(load_state_dict_file(path), state)


def test_the_facebookresearch_format_allows_its_namespace_only_while_reading(tmp_path):
    state = small_state()
    args = argparse.Namespace(model="deit_tiny_patch16_224", lr=5e-4, drop=None)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": state, "optimizer": optimizer, "epoch": 299, "args": args}, tmp_path / "checkpoint.pth")
    assert_same(load_state_dict_file(str(tmp_path / "checkpoint.pth")), state)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("prefix", [
    "module.", "model.", "_orig_mod.", "student.", "module.student.", "module._orig_mod.", "_orig_mod.module.model.",
])  # fmt: skip
def test_nested_wrapper_prefixes_are_removed(prefix):
    state = small_state()
    assert_same(strip_prefixes({prefix + key: tensor for key, tensor in state.items()}), state)


def test_only_the_student_of_a_distillers_checkpoint_is_loaded():
    state = small_state()
    distiller = {f"student.{key}": tensor for key, tensor in state.items()}
    distiller |= {f"teacher.{key}": torch.zeros(1) for key in (*state, "more.weight", "more.bias", "yet.more")}
    distiller |= {"distill_losses.loss_vitkd.align.weight": torch.zeros(2)}
    assert_same(strip_prefixes({f"module.{key}": tensor for key, tensor in distiller.items()}), state)


def test_a_rare_prefix_stays_and_two_tensors_for_one_name_are_an_error():
    state = small_state() | {"module.extra": torch.zeros(1)}
    assert_same(strip_prefixes(state), state)
    with pytest.raises(ValueError, match="two tensors for head.weight"):
        strip_prefixes({"module.head.weight": torch.zeros(1), "head.weight": torch.ones(1), "module.a": torch.ones(1)})


def test_timm_keys_and_unknown_keys_stay_as_they_are():
    state = {"blocks.0.norm1.weight": torch.zeros(1), "blocks.0.gamma_1": torch.ones(1), "strange": torch.ones(2)}
    assert_same(timm_keys(state), state)
    foreign = {"backbone.layers.11.ln1.weight": torch.ones(1), "head.layers.pre_logits.weight": torch.ones(1)}
    assert list(timm_keys(foreign)) == ["blocks.11.norm1.weight", "head.layers.pre_logits.weight"]


def test_a_pickle_that_runs_code_is_rejected_and_not_run(tmp_path):
    folder = tmp_path / "made_by_the_pickle"

    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(folder),)

    pickle.loads(pickle.dumps(RunsCode()))
    assert folder.is_dir(), "the trap does not work, so this test would prove nothing"
    folder.rmdir()
    torch.save({"model": small_state(), "trap": RunsCode()}, tmp_path / "malicious.pth")
    with pytest.raises(ValueError, match=rf"malicious.pth.*{os.mkdir.__module__}\.mkdir.*run code"):
        load_state_dict_file(tmp_path / "malicious.pth")
    assert not folder.exists()


def test_the_conversion_suggested_by_the_error_works(tmp_path):
    state = small_state()
    path = tmp_path / "with space.pth"
    torch.save({"state_dict": state, "meta": fractions.Fraction(1, 3)}, path)
    with pytest.raises(ValueError, match="fractions.Fraction") as refusal:
        load_state_dict_file(path)
    python, *arguments = shlex.split(str(refusal.value).partition("\n")[2])
    assert python == "python"
    subprocess.run([sys.executable, *arguments], check=True, timeout=60)
    assert_same(load_file(path.with_suffix(".safetensors")), state)


@pytest.mark.parametrize("pack", [lambda model: model, lambda model: {"model": model, "epoch": 3}])
def test_the_conversion_works_for_a_pickled_module(tmp_path, pack):
    model = torch.nn.Linear(2, 3)
    torch.save(pack(model), tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="torch.nn.modules.linear.Linear") as refusal:
        load_state_dict_file(tmp_path / "whole.pth")
    _, *arguments = shlex.split(str(refusal.value).partition("\n")[2])
    subprocess.run([sys.executable, *arguments], check=True, timeout=60)
    assert_same(load_file(tmp_path / "whole.safetensors"), model.state_dict())


def test_a_missing_file_and_an_unknown_suffix_are_errors(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"")
    cases = ("nowhere.pth", "nowhere.pth"), ("", "no weight file at"), ("weights.npz", r"'\.npz'. Convert it")
    for name, message in cases:
        with pytest.raises(ValueError, match=message):
            load_state_dict_file(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02]", b"PK\x03\x04 half a zip", 1, 100, 400])
def test_damaged_and_truncated_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"damaged{suffix}"
    torch.save(small_state(), path)
    path.write_bytes(path.read_bytes()[:-content] if isinstance(content, int) else content)
    with pytest.raises(ValueError, match=f"damaged{suffix} is damaged or no"):
        load_state_dict_file(path)


@pytest.mark.parametrize("content", [{}, {"model": {}, "epoch": 1}, [1, 2], torch.zeros(3)])
def test_a_file_without_named_tensors_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="empty.pth has no tensors"):
        load_state_dict_file(tmp_path / "empty.pth")


def test_differences_name_a_few_keys_of_each_kind():
    own = {f"k{index}": torch.zeros(2) for index in range(6)} | {"shaped": torch.zeros(2, 3)}
    text = key_differences(own, {"shaped": torch.zeros(3, 2), "other": torch.zeros(1)})
    assert text == ("6 missing: k0, k1, k2, k3, ...; 1 unexpected: other; 1 of another shape: shaped (3, 2) for (2, 3)")
    assert key_differences(own, own) == ""


def to_mmcls(
    state: dict[str, torch.Tensor], *, scales=(".attn.gamma1.weight", ".ffn.gamma2.weight"), norm="ln"
) -> dict:
    """The same weights under mmcls / mmpretrain names, written out from timm's side."""
    renamed = {}
    for key, tensor in state.items():
        if key.startswith("head"):
            new = "head.layers." + key
        elif key.startswith("norm."):
            new = f"backbone.{norm}1." + key.removeprefix("norm.")
        else:
            new = "backbone." + key.replace("patch_embed.proj.", "patch_embed.projection.")
            new = re.sub(r"\.blocks\.", ".layers.", new)
            new = re.sub(r"(layers\.\d+)\.norm", rf"\1.{norm}", new)
            new = new.replace(".mlp.fc1.", ".ffn.layers.0.0.").replace(".mlp.fc2.", ".ffn.layers.1.")
            for old, scale in zip((".ls1.gamma", ".ls2.gamma"), scales):
                new = new.replace(old, scale)
        renamed[new] = tensor
    assert len(renamed) == len(state)
    return renamed


def save_as(file_format: str, state: dict[str, torch.Tensor], folder):
    """Write `state` in one of the formats in common use, and return the path."""
    if file_format == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    deit = {re.sub(r"\.ls([12])\.gamma", r".gamma_\1", key): tensor for key, tensor in state.items()}
    mmcls = to_mmcls(state)
    contents = {
        "timm": state,
        "facebookresearch": {"model": deit, "optimizer": {}, "epoch": 299, "args": argparse.Namespace(lr=1e-3)},
        "ddp": {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        "mmpretrain": {"meta": {"epoch": 300}, "state_dict": mmcls},
        "mmcls, norm names": {"state_dict": to_mmcls(state, norm="norm")},
        "cls_KD": {"state_dict": to_mmcls(state, scales=(".gamma_1", ".gamma_2"))},
        "cls_KD distiller": {
            "state_dict": {f"student.{key}": tensor for key, tensor in mmcls.items()}
            | {f"teacher.{key}": torch.zeros(1) for key in mmcls}
            | {"distill_losses.loss_vitkd.mask_token": torch.zeros(1)}
        },
    }
    torch.save(contents[file_format], folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("file_format", [
    "timm", "safetensors", "facebookresearch", "ddp", "mmpretrain", "mmcls, norm names", "cls_KD", "cls_KD distiller",
])  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_loads_from_each_format_with_identical_logits(tmp_path, family, file_format):
    source = source_model(family)
    path = save_as(file_format, source.state_dict(), tmp_path)
    config = TeacherConfig(model=FAMILIES[family][0], model_args=FAMILIES[family][1], checkpoint=str(path))
    teacher = build_teacher(config, DataConfig(train="demo", val="demo", image_size=32, num_classes=5))
    images_BCHW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(teacher(images_BCHW), source(images_BCHW))


def torchvision_state():
    return VisionTransformer(32, 8, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=192, num_classes=5).state_dict()


# Named as in transformers 4.
TRANSFORMERS = (
    "vit.embeddings.cls_token",
    "vit.embeddings.patch_embeddings.projection.weight",
    "vit.encoder.layer.0.attention.attention.query.weight",
)


@pytest.mark.parametrize("library, state", [
    ("torchvision", torchvision_state()), ("transformers", {name: torch.zeros(1) for name in TRANSFORMERS}),
])  # fmt: skip
def test_a_file_of_another_library_is_named_with_the_file_to_use_instead(tmp_path, library, state):
    save_file(state, tmp_path / "foreign.safetensors")
    name, args = FAMILIES["deit"]
    config = TeacherConfig(model=name, model_args=args, checkpoint=str(tmp_path / "foreign.safetensors"))
    data = DataConfig(train="demo", val="demo", image_size=32, num_classes=5)
    with pytest.raises(ValueError, match=f"The file is from {library}, .* --teacher.checkpoint hub"):
        build_teacher(config, data)
    save_file({"odd": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="Pass the model's own file"):
        build_teacher(config, data)
