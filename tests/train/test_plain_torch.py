"""Updates of a whole run, including settings and schedules, against plain torch written out by hand."""

import math
import time
from contextlib import closing

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import FP32_RUN
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.models.build import without_fused_attention
from vitkd_ds.train.mixing import mix_step
from vitkd_ds.train.parts import build_models, build_parts
from vitkd_ds.train.step import settle, train_step

STEPS, MICRO, BATCH = 5, 4, 8
LATE_S = 0.02
FLAGS = {
    "recipe": "demo", "debug": "true", "seed": "3", "max_steps": f"{STEPS}", "ds_config": FP32_RUN.ds_config,
    "global_batch_size": f"{BATCH}", "micro_batch_size_per_gpu": f"{MICRO}", "teacher.placement": "replica",
    "losses.ce.weight": "0.5", "losses.ce.label_smoothing": "0.1", "losses.nkd.weight": "0", "losses.vitkd.weight": "0",
    "losses.kd.weight": "2", "losses.kd.temperature": "3", "losses.kd.schedule": "linear", "augment.mixup_alpha": "0.8",
    "student.drop_path_rate": "0.3", "optim.lr": "0.002", "optim.lr_batch_size": "4", "optim.min_lr": "0.001",
    "optim.warmup_epochs": "0", "optim.warmup_fraction": "0.4", "optim.warmup_start_factor": "0.25",
    "optim.weight_decay": "0.9", "optim.betas": "0.7,0.9", "optim.eps": "0.01", "optim.clip_grad_norm": "0.7",
    "optim.ema_decay": "0.6",
}  # fmt: skip


def rate_at(step):
    """Two steps of warm-up from a quarter of the peak, and a cosine over the other three."""
    peak = 0.002 * BATCH / 4
    return [peak / 4, peak * 5 / 8, peak, (peak + 0.001) / 2, 0.001][step]


def train_plainly(run, normalization, micro_batches):
    """Mean terms, weights and average after each step."""
    models = build_models(run)
    student, teacher = models.student.train(), models.teachers["teacher"].to(torch.bfloat16)
    for model in (student, teacher):
        without_fused_attention(model)
    named = dict(student.named_parameters())
    free = {name for name, p in named.items() if p.ndim == 1} | {"cls_token", "pos_embed"}
    groups = [{"params": [p for name, p in named.items() if (name in free) == is_free], "weight_decay": decay}
              for is_free, decay in ((False, 0.9), (True, 0.0))]  # fmt: skip
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(0.7, 0.9), eps=0.01)
    average, seen = {name: p.detach().clone() for name, p in named.items()}, []
    for step in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = rate_at(step)
        adamw.zero_grad()
        means = {"ce": 0.0, "kd": 0.0}
        for place, (images, labels) in enumerate(micro_batches[2 * step : 2 * step + 2]):
            mixed, targets = mix_step(run, images, labels, step=step, place=place)
            with torch.no_grad():
                answers = teacher(normalization.apply(mixed, torch.bfloat16)).float() / 3
            logits = student(normalization.apply(mixed, torch.float32))
            ce = -(targets * logits.log_softmax(1)).sum(1).mean()
            kd = 9 * F.kl_div((logits / 3).log_softmax(1), answers.softmax(1), reduction="batchmean")
            ((0.5 * ce + 2 * (1 - step / (STEPS - 1)) * kd) / 2).backward()
            means = {"ce": means["ce"] + ce.item() / 2, "kd": means["kd"] + kd.item() / 2}
        norm = torch.nn.utils.clip_grad_norm_(named.values(), 0.7).item()
        adamw.step()
        for name, p in named.items():
            average[name].lerp_(p.detach(), 0.4)
        weights = {name: p.detach().clone() for name, p in named.items()}
        seen.append((means, norm, weights, {name: value.clone() for name, value in average.items()}))
    return seen


def late(micro_batches):
    for micro_batch in micro_batches:
        time.sleep(LATE_S)
        yield micro_batch


def main():
    device = start_processes()
    torch.set_num_threads(1)
    run = parse_run((), FLAGS)
    parts = build_parts(run, device)
    with closing(parts.train_loader.epoch(0)) as source:
        micro_batches = [(images.clone(), labels.clone()) for (images, labels), _ in zip(source, range(2 * STEPS))]
    expected, left = train_plainly(run, parts.normalization, micro_batches), late(micro_batches)
    start, norms = build_models(run).student.state_dict(), []
    for step, (means, norm, *all_weights) in enumerate(expected):
        update = train_step(parts, left, step)
        assert update.waited_s >= 2 * LATE_S, "of both micro-batches"
        assert not settle(update, run)
        for name, mean in means.items():
            assert update.terms[name].item() == pytest.approx(mean, rel=1e-4), (step, name)
        assert update.outcome.grad_norm == pytest.approx(norm, rel=1e-3) and update.lr == pytest.approx(rate_at(step))
        norms.append(norm)
        for is_average, weights in zip((False, True), all_weights):
            found = parts.engine.student_weights(average=is_average)
            for name, value in weights.items():
                moved, error = (value - start[name]).norm(), (value - found[name]).norm()
                assert error <= 0.01 * moved, (step, is_average, name, error, moved)
    assert max(norms) > 0.7 and not math.isclose(min(norms), max(norms)), "some are clipped"
    leave()


def test_updates_with_unusual_settings_match_plain_torch(demo_cache):
    finish_ranks(start_ranks(1, "-m", __name__))


if __name__ == "__main__":
    main()
