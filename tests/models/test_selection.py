"""MaskedKD: the student chooses patches, the teacher sees only those; and a step of both engines."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import FP32_RUN, make_models, make_teacher
from tests.models.test_features import build
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.models.build import without_fused_attention
from vitkd_ds.models.selection import KeptTokens, check_selection, logits_and_attention
from vitkd_ds.train.parts import build_models, build_parts, fit_models
from vitkd_ds.train.step import train_step

KEPT = 12
FLAGS = {
    "recipe": "demo", "debug": "true", "losses.nkd.weight": "0", "losses.vitkd.weight": "0", "losses.kd.weight": "1",
    "teacher.keep_tokens": str(KEPT), "ds_config": FP32_RUN.ds_config,
    "global_batch_size": "24", "micro_batch_size_per_gpu": "12",
}  # fmt: skip


def seen_attention(model, images):
    """Attention after the softmax in timm's own unfused last block: class row, mean over heads."""
    without_fused_attention(model)
    seen = []
    hook = model.blocks[-1].attn.attn_drop.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = model(images)
    hook.remove()
    return logits, seen[0].mean(1)[:, 0, model.num_prefix_tokens :]


def answer_of(model, images, kept):
    """Logits of a DeiT III that sees only some patches, by hand."""
    patches = model.patch_embed(images) + model.pos_embed
    chosen = torch.stack([image[numbers] for image, numbers in zip(patches, kept.tolist())])
    tokens = torch.cat([model.cls_token.expand(len(images), -1, -1), chosen], dim=1)
    for block in model.blocks:
        tokens = block(tokens)
    return model.head(model.norm(tokens)[:, 0])


@pytest.mark.parametrize("name", ["deit", "distilled deit", "registers"])
def test_the_attention_matches_timms_own_and_the_logits_match_the_model(name):
    model, _ = build(name)
    images = torch.randn(3, 3, 32, 32)
    features, attention = logits_and_attention(model, images)
    logits = features.logits_BK
    assert torch.equal(logits, model(images)) and logits.requires_grad and not attention.requires_grad
    torch.testing.assert_close(attention, seen_attention(model, images)[1])
    assert attention.shape == (3, 16) and len(set(attention.flatten().tolist())) > 40


@torch.no_grad()
def test_the_teacher_sees_the_chosen_patches_at_their_positions():
    model, _ = build("deit iii")
    images, kept = torch.randn(2, 3, 32, 32), torch.tensor([[3, 0, 9], [15, 2, 1]])
    model.patch_drop = KeptTokens(model.num_prefix_tokens)
    whole = model(images)
    model.patch_drop.kept_BL = kept
    torch.testing.assert_close(model(images), answer_of(model, images, kept))
    assert not torch.allclose(model(images), whole, atol=1e-3)
    torch.testing.assert_close(whole, build("deit iii")[0](images))


def test_models_whose_attention_cannot_choose_are_rejected():
    small, (student, teacher) = {"img_size": 32, "num_classes": 7}, make_models()
    check_selection(student, teacher, 8)
    others = {
        "same patch grid": (timm.create_model("deit_tiny_patch16_224", **small), teacher, 2),
        "less than the teacher's 16 patches": (student, teacher, 16),
        "got ResNet": (student, timm.create_model("resnet18", num_classes=7), 8),
        "no class token": (build("average pooling")[0], teacher, 8),
        "ParallelThingsBlock": (timm.create_model("vit_base_patch16_18x2_224", depth=2, **small), teacher, 8),
    }
    for message, models in others.items():
        with pytest.raises(ValueError, match=message):
            check_selection(*models)


@pytest.mark.parametrize("term", ["vitkd", "vkd", "feature"])
def test_token_terms_are_rejected(term):
    message = rf"keep_tokens=12 drops tokens that losses\.{term} compare. Set --teacher\.keep_tokens=0"
    with pytest.raises(ValueError, match=message):
        parse_run((), FLAGS | {f"losses.{term}.weight": "1"})


def test_a_run_with_incompatible_models_is_rejected():
    run = replace(
        parse_run((), FLAGS), teachers={"teacher": replace(parse_run((), FLAGS).teachers["teacher"], keep_tokens=49)}
    )
    models = build_models(parse_run((), FLAGS))
    with pytest.raises(ValueError, match="less than the teacher's 49 patches"):
        fit_models(run, models.student, models.teachers)


def main(folder):
    """One step of two engines, and the same images through plain modules."""
    device = start_processes()
    torch.set_num_threads(1)
    seen = {}
    for placement in ("replica", "shard"):
        run = parse_run((), FLAGS | {"workdir": str(folder / placement), "teacher.placement": placement})
        parts = build_parts(run, device)
        with closing(parts.train_loader.epoch(0)) as micro_batches:
            images, labels = next(micro_batches)
        assert parts.engine.dtype is torch.float32, "a new student's attention, rounded, is nearly all ties"
        update = train_step(parts, iter([(images, labels)]), 0)
        seen[placement] = update.terms["kd"].item()
        models = build_models(replace(run, teachers={"teacher": replace(run.teachers["teacher"], placement="replica")}))
        without_fused_attention(models.teachers["teacher"])
        inputs = parts.normalization.apply(images, torch.float32)
        with torch.no_grad():
            logits, attention = seen_attention(models.student, inputs)
            kept = attention.sort(dim=1, descending=True).indices
            teacher = models.teachers["teacher"].to(torch.bfloat16)
            for name, numbers in {"best": kept[:, :KEPT], "worst": kept[:, -KEPT:], "all": kept}.items():
                answers = answer_of(teacher, inputs.bfloat16(), numbers).float().log_softmax(1)
                seen[f"{placement} {name}"] = F.kl_div(
                    logits.log_softmax(1), answers, reduction="batchmean", log_target=True
                ).item()
    plain, compiled = make_teacher("replica", keep_tokens=4), make_teacher("replica", keep_tokens=4, compile="default")
    images, kept = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8), torch.arange(20).reshape(5, 4) % 16
    answers = [teacher(images, kept_BL=kept).logits_BK.float() for teacher in (plain, compiled)]
    seen["compiled"], seen["rows"] = (answers[0] - answers[1]).abs().max().item(), len(answers[1])
    seen["whole"] = (plain(images).logits_BK.float() - answers[0]).abs().max().item()
    (folder / f"{parts.engine.engine.global_rank}.json").write_text(json.dumps(seen))
    leave()


@pytest.mark.slow
def test_a_step_distils_from_the_teacher_that_saw_the_chosen_patches(demo_cache, tmp_path):
    finish_ranks(start_ranks(2, "-m", __name__, tmp_path), timeout=500)
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        for placement in ("replica", "shard"):
            assert seen[placement] == pytest.approx(seen[f"{placement} best"], rel=0.01)
            for others in ("worst", "all"):
                assert seen[placement] != pytest.approx(seen[f"{placement} {others}"], rel=0.03)
        assert seen["compiled"] < 0.05 and seen["rows"] == 5, "a smaller micro-batch is padded, and its choice too"
        assert seen["whole"] > 2 * seen["compiled"], "without a choice the teacher sees all patches"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
