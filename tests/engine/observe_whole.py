"""Record whether DeepSpeed moves a whole teacher to the device before it partitions it; see `observed`."""

from dataclasses import replace
from unittest import mock

import timm
import torch
from torch import nn

from tests.engine import tiny
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.engine.teacher import FeatureModule, Teacher


def moves_of(build):
    """Build a teacher. Return it, and for each move of its module to a device, whether the module had whole weights."""
    moves = []

    def to(module, where, *args, **kwargs):
        if isinstance(where, torch.device):
            moves.append(any(not hasattr(p, "ds_id") for p in module.parameters()))
        return nn.Module.to(module, where, *args, **kwargs)

    with mock.patch.object(FeatureModule, "to", to):
        return build(), moves


def make_convnext(placement):
    """Return a teacher without blocks, and the same model for comparison."""
    torch.manual_seed(0)
    size = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 10}
    model = timm.create_model("convnext_atto", **size).requires_grad_(False).eval()
    plain = timm.create_model("convnext_atto", **size).eval()
    plain.load_state_dict(model.state_dict())
    teachers = {"teacher": TeacherConfig(model="convnext_atto", checkpoint="random", placement=placement)}
    losses = replace(tiny.LOSSES, vitkd=replace(tiny.LOSSES.vitkd, weight=0))
    run = replace(tiny.RUN, teachers=teachers, compile="off", losses=losses)
    return Teacher(model, run, device=torch.device("cpu"), micro_batch_size=8), plain


def observe(seen):
    """Record the moves of each placement's teacher, and the logits of an offloaded teacher without blocks."""
    for placement in ("shard", "offload", "replica"):
        _, seen[f"{placement} moves"] = moves_of(lambda placement=placement: tiny.make_teacher(placement))
    (teacher, plain), seen["offload without blocks moves"] = moves_of(lambda: make_convnext("offload"))
    images_BCHW = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain.bfloat16()(teacher.normalization.apply(images_BCHW, torch.bfloat16))
    seen["offload without blocks equal"] = torch.equal(teacher(images_BCHW).logits_BK, expected)
