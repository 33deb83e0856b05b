"""A teacher read block by block: features equal the full model's, and no rank ever holds more than a block."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import RUN, make_batch, tensors
from vitkd_ds.config.run import DataConfig, TeacherConfig
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.engine.teacher import Teacher, move_buffers
from vitkd_ds.models.build import build_teacher, normalization_of, without_fused_attention
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.stream import WeightStream
from vitkd_ds.train.parts import check_is_read_alike

ARGS = {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 3}
DATA = DataConfig(train="", val="", image_size=16, num_classes=10)
MODELS = {
    "dinov3": ("vit_small_patch16_dinov3", ARGS),
    "qkv biases": ("vit_small_patch16_dinov3_qkvb", ARGS),
    "eva02": ("eva02_tiny_patch14_224", ARGS),
    "pe": ("vit_pe_spatial_tiny_patch16_512", ARGS),
    "deit iii": ("deit3_small_patch16_224", ARGS | {"init_values": 0.1}),
    "distilled": ("deit_tiny_distilled_patch16_224", ARGS),
}


def source(name, **more):
    """A model with random weights throughout, and its timm arguments."""
    architecture, args = MODELS[name]
    torch.manual_seed(0)
    model = timm.create_model(architecture, **{"img_size": 16, "num_classes": 10} | args | more)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    without_fused_attention(model)
    return model.eval()


def save(name, folder, *, is_cut=False, dtype=torch.bfloat16):
    """Write a model's weights as one file, or as two with an index."""
    state = {key: tensor.to(dtype).contiguous() for key, tensor in source(name).state_dict().items()}
    if not is_cut:
        save_file(state, path := folder / f"{name}.safetensors")
        return path
    names = list(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({key: state[key] for key in part}, folder / file)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {key: file for file, part in parts.items() for key in part}}))
    return path


def config(name, path, **more):
    architecture, args = MODELS[name]
    return TeacherConfig(model=architecture, model_args=args, checkpoint=str(path), **more)


def real_elements(model):
    return sum(p.numel() for p in model.parameters() if not p.is_meta)


def watch(model, stream):
    """Record each rank's element count after each read, and the names it reads."""
    seen, fill = {"most": 0, "read": []}, stream.fill

    def watched(module, prefix, dtype, *, is_read=True):
        fill(module, prefix, dtype, is_read=is_read)
        seen["most"] = max(seen["most"], real_elements(model))
        seen["read"] += [prefix] * is_read

    stream.fill = watched
    return seen


def main(folder):
    device = start_processes()
    torch.set_num_threads(1)
    images_BCHW, found = make_batch(8)[0], {}
    for name in MODELS:
        plain = source(name).bfloat16()
        with torch.no_grad():
            normalized = normalization_of(plain).apply(images_BCHW, torch.bfloat16)
            expected = tensors(tap_features(plain, normalized, (0, 2)))
        for placement in ("shard", "offload", "replica"):
            path = (
                folder / f"{name}.safetensors"
                if placement == "shard"
                else folder / name / "model.safetensors.index.json"
            )
            if placement == "replica":
                path = folder / f"{name}.safetensors"
            teacher = config(name, path, placement=placement)
            losses = replace(RUN.losses, vitkd=replace(RUN.losses.vitkd, blocks=(0, 2)))
            run = replace(RUN, teachers={"teacher": teacher}, losses=losses)
            model = build_teacher(teacher, DATA, stream=placement != "replica")
            without_fused_attention(model)
            seen = watch(model, model.weight_stream) if placement != "replica" else {}
            blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
            rest = sum(p.numel() for p in model.parameters()) - sum(blocks)
            engine = Teacher(model, run, device=device, micro_batch_size=8)
            outcome = tensors(engine(images_BCHW))
            equal = [torch.equal(a, b) for a, b in zip(outcome, expected, strict=True)]
            kept = sum(getattr(p, "ds_tensor", p).numel() for p in engine.module.parameters())
            found[f"{name} {placement}"] = seen | {
                "equal": all(equal), "block": max(blocks), "rest": rest, "all": sum(blocks) + rest, "kept": kept,
                "spread": len({t.float().std().item() for t in outcome}),
            }  # fmt: skip
    model = build_teacher(config("dinov3", folder / "dinov3.safetensors"), DATA, stream=ranks.rank() == 0)
    try:
        check_is_read_alike(model, "teacher")
    except ValueError as error:
        found["unlike"] = str(error)
    (folder / f"rank{ranks.rank()}.json").write_text(json.dumps(found))
    leave()


def test_rank_0_reads_each_block_once_and_the_features_equal_the_whole_models(tmp_path):
    for name in MODELS:
        (tmp_path / name).mkdir()
        save(name, tmp_path)
        save(name, tmp_path / name, is_cut=True)
    finish_ranks(start_ranks(2, "-m", __name__, tmp_path), timeout=500)
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        unlike = seen.pop("unlike")
        assert "ranks 1 cannot stream it, because it is not a safetensors file or needs conversion" in unlike
        assert len(seen) == 3 * len(MODELS)
        for name, each in seen.items():
            assert each["equal"] and each["spread"] > 3, name
            if "replica" not in name:
                assert each["most"] <= each["block"] + each["rest"], f"{name}: more than a block at a time"
                assert each["kept"] <= each["all"] / 2 + 64, f"{name}: half of it stays on a rank"
                blocks = [f"blocks.{i}." for i in range(4)]
                assert each["read"] == ([*blocks, ""] if rank == 0 else [""]), f"{name}: others wait for rank 0's"


@pytest.mark.parametrize("damage, message", [
    ("short", r"dinov3\.safetensors is damaged or not a safetensors file"),
    ("integers", r"must be F64, F32, F16, BF16, got blocks\.0\.\S+ I64. Convert the file"),
    ("other model", r"teacher\.checkpoint=\S+ does not fit the configured model.*of another shape"),
    ("no such part", r"no weight file at \S+b\.safetensors"),
    ("other part", r"b\.safetensors lacks tensor \S+, which its index lists"),
    ("no index", r"is not an index of safetensors files.*KeyError"),
])  # fmt: skip
def test_a_file_that_is_damaged_or_of_another_model_is_rejected_by_its_header(tmp_path, damage, message):
    path = save("dinov3", tmp_path, is_cut=damage in ("no such part", "other part", "no index"))
    teacher = config("dinov3", path)
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "integers":
        state = {key: t.long() if "blocks.0.norm1" in key else t for key, t in source("dinov3").state_dict().items()}
        save_file(state, path)
    elif damage == "other model":
        teacher = replace(teacher, model_args=ARGS | {"embed_dim": 96})
    elif damage == "no such part":
        (tmp_path / "b.safetensors").unlink()
    elif damage == "other part":
        (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    else:
        path.write_text("{}")
    with pytest.raises(ValueError, match=message):
        build_teacher(teacher, DATA, stream=True)


def test_buffers_follow_the_teacher_to_its_device(tmp_path):
    teacher = build_teacher(config("qkv biases", save("qkv biases", tmp_path)), DATA, stream=True)
    before = {name for name, buffer in teacher.named_buffers() if buffer.device.type == "cpu"}
    assert any("rope" in name for name in before) and any("k_bias" in name for name in before)
    move_buffers(teacher, torch.device("meta"))  # the only device other than the CPU here
    assert all(buffer.is_meta for buffer in teacher.buffers())


def test_an_index_of_files_is_read_completely_if_not_streamed(tmp_path):
    path = save("dinov3", tmp_path, is_cut=True)
    teacher = build_teacher(config("dinov3", path, placement="replica"), DATA)
    expected = source("dinov3").bfloat16().state_dict()
    assert all(torch.equal(t, expected[key].float()) for key, t in teacher.state_dict().items())
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    with pytest.raises(ValueError, match="but its files lack that tensor"):
        build_teacher(config("dinov3", path, placement="replica"), DATA)


def test_weights_missing_on_the_hub_give_a_clear_error_and_nothing_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: pytest.fail("timm was asked"))
    hub = TeacherConfig(model="vit_7b_patch16_dinov3.lvd1689m")
    with pytest.raises(
        ValueError, match="are not in this node's cache and cannot be downloaded: OfflineModeIsEnabled: .*hf auth"
    ):
        build_teacher(hub, replace(DATA, image_size=224), needs_logits=False, stream=True)


def test_weights_that_need_conversion_are_read_completely(tmp_path):
    state = source("deit iii", img_size=32).state_dict()
    save_file({key: t.contiguous() for key, t in state.items()}, path := tmp_path / "larger.safetensors")
    teacher = build_teacher(config("deit iii", path, allow_other_resolution=True), DATA, stream=True)
    assert not hasattr(teacher, "weight_stream") and not any(p.is_meta for p in teacher.parameters())


def test_a_classifier_for_other_classes_is_dropped(tmp_path):
    path = save("deit iii", tmp_path)
    few = replace(DATA, num_classes=5)
    teacher = build_teacher(config("deit iii", path), few, needs_logits=False, stream=True)
    assert teacher.num_classes == 0 and teacher.weight_stream.shapes.keys() == teacher.state_dict().keys()
    with pytest.raises(ValueError, match=r"2 of another shape: head\.weight \(10, 48\) for \(5, 48\)"):
        build_teacher(config("deit iii", path), few, stream=True)


def test_the_hubs_file_is_streamed_from_the_local_cache(tmp_path, monkeypatch):
    """The cache layout of `huggingface_hub`, with no network, as on a cluster's nodes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--timm--vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    model = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0)
    state = {key: t.contiguous() for key, t in model.state_dict().items()}
    save_file(state, repository / "snapshots" / "abc" / "model.safetensors")
    hub = TeacherConfig(model="vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m")
    teacher = build_teacher(hub, replace(DATA, image_size=224), needs_logits=False, stream=True)
    assert isinstance(teacher.weight_stream, WeightStream)
    teacher.weight_stream.fill(teacher, "", torch.float32)
    assert all(torch.equal(t, state[key]) for key, t in teacher.state_dict().items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
