"""Run on one rank by test_compiled.py: student and teacher compiled as they ship, and as they are.

What is observed goes to seen.json in the folder given.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from tests.engine.tiny import FP32_RUN, forward, make_batch, make_engine, make_teacher
from vitkd_ds.engine.processes import start_processes


def losses(run):
    """Totals of four updates in fp32, masks and drop path included."""
    engine, teacher = make_engine(run)
    for block in engine.engine.module.student.blocks:
        block.drop_path1.drop_prob = block.drop_path2.drop_prob = 0.3
    totals = []
    for step in range(4):
        engine.set_lr(1e-3)
        torch.manual_seed(step)
        terms = forward(engine, teacher, *make_batch())
        engine.backward(terms["total"])
        assert engine.step()
        totals.append(terms["total"].item())
    return totals


def graphs_of_a_teacher(placement):
    """Graphs compiled after a training micro-batch, a smaller one of an evaluation, and another of training; and
    whether the smaller one's features are those of a teacher that is not compiled."""
    teacher = make_teacher(placement, compile=True)
    images_BCHW, _ = make_batch(8)
    counters.clear()
    graphs = []
    for images in (images_BCHW, images_BCHW[:5], images_BCHW):
        features = teacher(images)
        assert all(len(feature) == len(images) for feature in features)
        graphs.append(counters["stats"]["unique_graphs"])
    plain, found = make_teacher(placement)(images_BCHW[:5]), teacher(images_BCHW[:5])
    difference = max((a.float() - b.float()).abs().max().item() for a, b in zip(plain, found))
    return {"graphs": graphs, "difference": difference}


def main():
    start_processes()
    torch.set_num_threads(1)
    seen = {name: losses(replace(FP32_RUN, compile=name == "compiled")) for name in ("eager", "compiled")}
    seen |= {placement: graphs_of_a_teacher(placement) for placement in ("replica", "shard")}
    Path(sys.argv[1], "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
