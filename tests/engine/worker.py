"""Run on each of two ranks by test_two_engines.py: tiny models, both real engines, observations as JSON on rank 0.

One process group for all observations, since starting DeepSpeed takes seconds. Every rank runs all of it.
"""

import json
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from vitkd_ds.config.losses import LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.build import check_pair, normalization_of
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features
from vitkd_ds.recipes import build_run

FP32 = str(Path(__file__).parents[1] / "ds_zero2_fp32.json")
SIZE = {"img_size": 16, "patch_size": 4, "depth": 3, "num_classes": 10}
LOSSES = LossesConfig(nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, alpha=1e-3, beta=1e-3))
RUN = build_run("demo")
RUN = replace(RUN, global_batch_size=16, losses=LOSSES, optim=replace(RUN.optim, clip_grad_norm=0.5))


def make_models():
    torch.manual_seed(0)
    student = timm.create_model("deit_tiny_patch16_224", embed_dim=16, num_heads=2, **SIZE)
    teacher = timm.create_model("deit3_small_patch16_224", embed_dim=32, num_heads=2, init_values=0.1, **SIZE)
    return student, teacher.eval()


def make_batch(images=16):
    generator = torch.Generator().manual_seed(1)
    images_BCHW = torch.randint(0, 256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels_B = torch.randint(0, 10, (images,), generator=generator)
    return images_BCHW, F.one_hot(labels_B, 10).float()


def make_engine(run, *, micro=None, accumulation=1):
    student, teacher = make_models()
    distiller = Distiller(student, run.losses, check_pair(student, teacher, blocks=(0, 1)))
    micro = micro or run.global_batch_size // ranks.world_size() // accumulation
    config = student_ds_config(run, micro_batch_size=micro, accumulation_steps=accumulation)
    return StudentEngine(distiller, run, config), teacher


def make_teacher(placement):
    model = make_models()[1]
    config = TeacherConfig(model="deit3_small_patch16_224", checkpoint="random", placement=placement)
    return Teacher(model, config, blocks=(0, 1), device=torch.device("cpu"), micro_batch_size=8)


def weights_of_terms():
    return {name: torch.tensor(float(term.weight)) for name, term in RUN.losses.active().items()}


def train(engine, teacher_model, *, steps=3, accumulation=1):
    """A few updates on fixed data cut over ranks and micro-batches; totals and gradient norms, mean over ranks."""
    images_BCHW, targets_BK = make_batch()
    micro = len(images_BCHW) // ranks.world_size() // accumulation
    normalization = normalization_of(engine.engine.module.student)
    totals, norms = [], []
    for step in range(steps):
        engine.set_lr(1e-3)
        total = torch.zeros(())
        for i in range(accumulation):
            first = (i * ranks.world_size() + ranks.rank()) * micro
            chunk, targets = images_BCHW[first : first + micro], targets_BK[first : first + micro]
            with torch.no_grad():
                features = tap_features(teacher_model, normalization.apply(chunk, torch.float32))
            torch.manual_seed(step)
            noise = torch.rand(16, 16)[first : first + micro]
            torch.rand = lambda *_, noise=noise, **__: noise  # the mask must not depend on how images are dealt out
            images = normalization.apply(chunk, engine.dtype)
            terms = engine(images, targets, features, weights_of_terms())
            torch.rand = TORCH_RAND
            engine.backward(terms["total"])
            total += terms["total"].detach() / accumulation
        assert engine.step()
        totals.append(ranks.sum_over_ranks(total).item() / ranks.world_size())
        norms.append(engine.grad_norm)
    return totals, norms


TORCH_RAND = torch.rand


def train_plainly(*, steps=3):
    """The same updates in plain torch on the whole batch: no engine, no ranks, no micro-batches."""
    student, teacher = make_models()
    distiller = Distiller(student, RUN.losses, check_pair(student, teacher, blocks=(0, 1)))
    optim = RUN.optim
    groups = distiller.parameter_groups(optim.weight_decay)
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=optim.betas, eps=optim.eps)
    images_BCHW, targets_BK = make_batch()
    images = normalization_of(student).apply(images_BCHW, torch.float32)
    totals, norms = [], []
    for step in range(steps):
        with torch.no_grad():
            features = tap_features(teacher, images)
        torch.manual_seed(step)
        noise = torch.rand(16, 16)
        torch.rand = lambda *_, noise=noise, **__: noise
        total = distiller(images, targets_BK, features, weights_of_terms())["total"]
        torch.rand = TORCH_RAND
        total.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(distiller.parameters(), optim.clip_grad_norm).item())
        adamw.step()
        adamw.zero_grad()
        totals.append(total.item())
    return totals, norms


def observe_teacher(seen):
    linear_before = F.linear
    images_BCHW, _ = make_batch(8)
    plain = make_models()[1].bfloat16()
    with torch.no_grad():
        expected = tap_features(plain, normalization_of(plain).apply(images_BCHW, torch.bfloat16))
    for placement in ("shard", "offload", "replica"):
        teacher = make_teacher(placement)
        found = teacher(images_BCHW)
        seen[f"{placement} equal"] = [torch.equal(a, b) for a, b in zip(found, expected)]
        seen[f"{placement} requires_grad"] = any(p.requires_grad for p in teacher.module.parameters())
        seen[f"{placement} output grad"] = found.logits_BK.requires_grad
        teacher.module.train()
        for module in teacher.module.modules():
            module.training = True
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.9
        seen[f"{placement} equal after train()"] = torch.equal(teacher(images_BCHW).logits_BK, expected.logits_BK)
        if placement != "replica":
            parameters = list(teacher.module.parameters())
            seen[f"{placement} live"] = sum(p.numel() for p in parameters)
            seen[f"{placement} held"] = sum(p.ds_tensor.numel() for p in parameters)
            seen[f"{placement} padding"] = len(parameters)
            seen["all"] = sum(p.ds_numel for p in parameters)
    seen["linear is torch's own"] = F.linear is linear_before


def observe_placements(seen):
    engine, _ = make_engine(RUN)
    images_BCHW, targets_BK = make_batch(8)
    images = normalization_of(engine.engine.module.student).apply(images_BCHW, engine.dtype)
    for placement in ("shard", "replica", "offload"):
        features = make_teacher(placement)(images_BCHW)
        torch.manual_seed(0)
        with torch.no_grad():
            terms = engine(images, targets_BK, features, weights_of_terms())
        seen[f"{placement} total"] = terms["total"].item()
        seen["term dtypes"] = sorted({str(value.dtype) for value in terms.values()})
        seen["total is the sum"] = abs(terms["total"] - sum(v for k, v in terms.items() if k != "total")).item()


def observe_training(seen):
    fp32 = replace(RUN, ds_config=FP32)
    seen["fp32 8x1"] = train(*make_engine(fp32))
    engine, teacher = make_engine(fp32)
    train(engine, teacher)
    exported = make_models()[0]
    exported.load_state_dict(engine.student_weights(), strict=True)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        trained = engine.engine.module.student.eval()(images)
        seen["exported logits"] = torch.equal(exported.eval()(images), trained)
    seen["fp32 4x2"] = train(*make_engine(fp32, accumulation=2), accumulation=2)
    seen["fp32 2x4"] = train(*make_engine(fp32, accumulation=4), accumulation=4)
    seen["fp32 plain torch"] = train_plainly()
    engine, teacher = make_engine(RUN)
    start = {name: p.detach().clone() for name, p in make_models()[0].named_parameters()}
    seen["bf16 engine starts in fp32"] = all(torch.equal(engine.student_weights()[k], v) for k, v in start.items())
    seen["bf16"] = train(engine, teacher)


def observe_average(seen, folder):
    decay = 0.9
    run = replace(RUN, ds_config=FP32, optim=replace(RUN.optim, ema_decay=decay))
    engine, teacher = make_engine(run)
    average = {name: value.double() for name, value in engine.student_weights(average=False).items()}
    for _ in range(3):
        train(engine, teacher, steps=1)
        raw = engine.student_weights(average=False)
        average = {name: decay * average[name] + (1 - decay) * raw[name].double() for name in average}
    found = engine.student_weights()
    seen["average error"] = max((found[name] - average[name]).abs().max().item() for name in average)
    again = engine.student_weights(average=False)
    seen["raw weights untouched"] = all(torch.equal(again[name], raw[name]) for name in raw)
    seen["average differs from raw"] = any(not torch.equal(found[name], raw[name]) for name in raw)
    saved = folder / "step00000003"
    saved.mkdir(exist_ok=True)
    for name, content in engine.state_files().items():
        torch.save(content, saved / name)
    ranks.barrier()
    seen["checkpoint files"] = sorted(p.name for p in saved.iterdir())
    restored, _ = make_engine(run)
    restored.load(str(folder), "step00000003")
    for average_too in (True, False):
        before, after = engine.student_weights(average=average_too), restored.student_weights(average=average_too)
        seen[f"restored average={average_too}"] = all(torch.equal(before[name], after[name]) for name in before)
    seen["continued"] = train(restored, teacher, steps=2)
    seen["uninterrupted"] = train(engine, teacher, steps=2)
    module = torch.load(saved / "mp_rank_00_model_states.pt")["module"]
    seen["saved parts"] = sorted({name.split(".")[0] for name in module})


def main():
    folder = Path(sys.argv[1])
    start_processes()
    torch.set_num_threads(1)
    seen = {"world_size": ranks.world_size()}
    if ranks.world_size() == 2:
        observe_teacher(seen)
        observe_placements(seen)
        observe_average(seen, folder)
        observe_training(seen)
    else:
        seen["fp32 8x1"] = train(*make_engine(replace(RUN, ds_config=FP32)))
        seen["bf16"] = train(*make_engine(deepcopy(RUN)))
    if ranks.rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main()
