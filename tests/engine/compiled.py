"""Run on one rank by test_compiled.py: student and teacher compiled as they ship, and as they are.

What is observed goes to seen.json in the folder given.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from tests.engine.worker import RUN, make_batch, make_engine, make_models, weights_of_terms
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.features import tap_features

MICRO_BATCH = 8


def losses(run):
    """Totals of four updates in fp32, masks and drop path included."""
    engine, teacher = make_engine(run)
    student = engine.engine.module.student
    for block in student.blocks:
        block.drop_path1.drop_prob = block.drop_path2.drop_prob = 0.3
    normalization = normalization_of(student)
    images_BCHW, targets_BK = make_batch()
    with torch.no_grad():
        features = tap_features(teacher, normalization.apply(images_BCHW, torch.float32))
    totals = []
    for step in range(4):
        engine.set_lr(1e-3)
        torch.manual_seed(step)
        terms = engine(normalization.apply(images_BCHW, engine.dtype), targets_BK, features, weights_of_terms())
        engine.backward(terms["total"])
        assert engine.step()
        totals.append(terms["total"].item())
    return totals


def graphs_of_a_teacher(placement):
    """Graphs compiled after a training micro-batch, a smaller one of an evaluation, and another of training; and
    whether the smaller one's features are those of a teacher that is not compiled."""
    config = TeacherConfig(model="deit3_small_patch16_224", checkpoint="random", placement=placement)
    shared = {"blocks": (0, 1), "device": torch.device("cpu"), "micro_batch_size": MICRO_BATCH}
    teacher = Teacher(make_models()[1], config, **shared, compile=True)
    images_BCHW, _ = make_batch(MICRO_BATCH)
    counters.clear()
    graphs = []
    for images in (images_BCHW, images_BCHW[:5], images_BCHW):
        features = teacher(images)
        assert all(len(feature) == len(images) for feature in features)
        graphs.append(counters["stats"]["unique_graphs"])
    plain = Teacher(make_models()[1], config, **shared)(images_BCHW[:5])
    found = teacher(images_BCHW[:5])
    difference = max((a.float() - b.float()).abs().max().item() for a, b in zip(plain, found))
    return {"graphs": graphs, "difference": difference}


def main():
    folder = Path(sys.argv[1])
    start_processes()
    torch.set_num_threads(1)
    path = folder / "fp32.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}))
    run = replace(RUN, ds_config=str(path))
    seen = {name: losses(replace(run, compile=name == "compiled")) for name in ("eager", "compiled")}
    seen |= {placement: graphs_of_a_teacher(placement) for placement in ("replica", "shard")}
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
