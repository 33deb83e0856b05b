"""Tiny models on the real engines, for programs that tests start on several ranks."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from deepspeed.utils import safe_get_full_fp32_param
from torch.utils._pytree import tree_leaves

from vitkd_ds.config.losses import (
    TERMS,
    AttentionTerm,
    DISTTerm,
    FeatureTerm,
    LossesConfig,
    NKDTerm,
    RelationTerm,
    SpectralTerm,
    ViTKDTerm,
    VkDTerm,
)
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.attention import AttentionMaps
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features
from vitkd_ds.models.pair import check_pair
from vitkd_ds.recipes import build_run

SIZE = {"img_size": 16, "patch_size": 4, "depth": 3, "num_classes": 10}
LOSSES = LossesConfig(nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, alpha=1e-3, beta=1e-3))
OTHERS = LossesConfig(
    dist=DISTTerm(weight=1, scope="all_ranks"), vkd=VkDTerm(weight=1), spectral=SpectralTerm(weight=1),
    feature=FeatureTerm(weight=1), relation=RelationTerm(weight=1, queue=24), attention=AttentionTerm(weight=1),
    balance=True,
)  # fmt: skip
"""All terms that have parameters or buffers, gather, or read features inside blocks."""
RUN = build_run("demo")
RUN = replace(RUN, global_batch_size=16, losses=LOSSES, optim=replace(RUN.optim, clip_grad_norm=0.5))
AUTOCAST_RUN = replace(RUN, ds_config="ds_configs/zero2_autocast.json")
FP32_RUN = replace(RUN, ds_config=str(Path(__file__).with_name("fp32.json")))


def make_models():
    torch.manual_seed(0)
    student = timm.create_model("deit_tiny_patch16_224", embed_dim=16, num_heads=2, **SIZE)
    teacher = timm.create_model("deit3_small_patch16_224", embed_dim=32, num_heads=2, init_values=0.1, **SIZE)
    return student, teacher.eval()


NORMALIZATION = normalization_of(make_models()[0])


def make_distiller(losses=LOSSES):
    student, teacher = make_models()
    teacher.maps = AttentionMaps(teacher, losses.needs.teacher_attention)
    return Distiller(
        student, losses, {"teacher": check_pair(student, teacher, losses, image_size=16)}, ranks.gather
    ), teacher


def set_drop_path(student, probability):
    for block in student.blocks:
        block.drop_path1.drop_prob = block.drop_path2.drop_prob = probability


def parameter_groups(distiller, weight_decay):
    """Return parameter groups for torch's AdamW."""
    decayed, undecayed = distiller.split_by_decay()
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]


def all_weights(engine):
    """Return the fp32 weights of a `StudentEngine`'s student and losses by name. Collective."""
    flat = engine.engine.module
    return flat.views([safe_get_full_fp32_param(p) for p in flat.flats])


def put_weights(engine):
    """Return an engine's student with the weights that the engine computes with, for calls outside the engine."""
    flat = engine.engine.module
    student = make_models()[0].to(engine.dtype)
    weights = flat.views([p.detach() for p in flat.flats])
    student.load_state_dict({name.removeprefix("student."): p for name, p in weights.items() if "student." in name})
    return student


def make_batch(images=16):
    generator = torch.Generator().manual_seed(1)
    images_BCHW = torch.randint(0, 256, (images, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels_B = torch.randint(0, 10, (images,), generator=generator)
    return images_BCHW, F.one_hot(labels_B, 10).float()


def make_engine(run, *, accumulation=1):
    distiller, teacher = make_distiller(run.losses)
    micro = run.global_batch_size // ranks.world_size() // accumulation
    sizes = {"micro_batch_size": micro, "accumulation_steps": accumulation}
    return StudentEngine(distiller, run, student_ds_config(run, **sizes)), teacher


def make_teacher(placement, *, compile="off", keep_tokens=0):
    config = TeacherConfig(
        model="deit3_small_patch16_224", checkpoint="random", placement=placement, keep_tokens=keep_tokens
    )
    attention = AttentionTerm(weight=0 if keep_tokens else 1, student_blocks=(0, -1), teacher_blocks=(0, -1))
    run = replace(RUN, teachers={"teacher": config}, compile=compile, losses=replace(LOSSES, attention=attention))
    return Teacher(make_models()[1], run, device=torch.device("cpu"), micro_batch_size=8)


def tensors(features):
    """Return the tensors of `Features`."""
    return [leaf for leaf in tree_leaves(features) if leaf is not None]


def weights_of_terms():
    return {name: torch.tensor(1.0) for name in TERMS}


def forward(module, teacher_model, images_BCHW, targets_BK, dtype=torch.float32):
    """Return the terms of one micro-batch from an engine or a plain `Distiller`."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        images = NORMALIZATION.apply(images_BCHW, torch.float32)
        features = tap_features(teacher_model, images, maps=teacher_model.maps)
    return module(NORMALIZATION.apply(images_BCHW, dtype), targets_BK, {"teacher": features}, weights_of_terms())


def with_noise(step, images, function):
    """Call a function with the random mask of the slice `images`, independent of how images are split over ranks."""
    torch.manual_seed(step)
    noise_BP = torch.rand(16, 16)[images]
    with mock.patch.object(torch, "rand", lambda *_, **__: noise_BP):
        return function()


def train(engine, teacher_model, *, steps=3, accumulation=1, num_images=16):
    """Make a few updates on fixed data split over ranks and micro-batches; return totals and gradient norms, averaged
    over ranks."""
    images_BCHW, targets_BK = make_batch(num_images)
    micro = num_images // ranks.world_size() // accumulation
    totals, norms = [], []
    for step in range(steps):
        engine.set_lr(1e-3)
        total = torch.zeros(())
        for i in range(accumulation):
            first = (i * ranks.world_size() + ranks.rank()) * micro
            mine = slice(first, first + micro)
            share = images_BCHW[mine], targets_BK[mine], engine.dtype
            terms = with_noise(step, mine, lambda share=share: forward(engine, teacher_model, *share))
            engine.backward(terms["total"])
            total += terms["total"].detach() / accumulation
        outcome = engine.step()
        assert outcome.is_applied
        totals.append(ranks.sum_over_ranks(total).item() / ranks.world_size())
        norms.append(outcome.grad_norm)
    return totals, norms


def train_plainly(*, steps, autocast=False):
    """Make the same updates in plain torch on the whole batch: no engine, no ranks, no micro-batches."""
    distiller, teacher = make_distiller()
    optim = RUN.optim
    groups = parameter_groups(distiller, optim.weight_decay)
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=optim.betas, eps=optim.eps)
    totals, norms = [], []
    for step in range(steps):
        adamw.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            total = with_noise(step, slice(None), lambda: forward(distiller, teacher, *make_batch()))["total"]
        total.backward()
        totals.append(total.item())
        norms.append(torch.nn.utils.clip_grad_norm_(distiller.parameters(), optim.clip_grad_norm).item())
        adamw.step()
    return totals, norms
