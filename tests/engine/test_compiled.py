"""torch.compile changes speed alone: student and teacher compiled as they ship, and as they are, on one rank."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import FP32_RUN, forward, make_batch, make_engine, make_teacher
from vitkd_ds.engine.processes import start_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


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


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = tmp_path_factory.mktemp("compiled") / "seen.json"
    finish_ranks(start_ranks(1, "-m", __name__, path), timeout=500)
    return json.loads(path.read_text())


def test_a_compiled_student_draws_the_same_masks_and_drop_path_and_has_the_same_losses_in_fp32(seen):
    assert seen["compiled"] == pytest.approx(seen["eager"], rel=1e-5)
    assert len(set(seen["eager"])) == 4


@pytest.mark.parametrize("placement", ["replica", "shard"])
def test_a_smaller_micro_batch_does_not_compile_the_teacher_anew(seen, placement):
    graphs = seen[placement]["graphs"]
    assert graphs[0] > 0 and graphs == [graphs[0]] * 3
    assert seen[placement]["difference"] < 0.1, "bf16 rounding"


if __name__ == "__main__":
    start_processes()
    torch.set_num_threads(1)
    seen_here = {name: losses(replace(FP32_RUN, compile=name == "compiled")) for name in ("eager", "compiled")}
    seen_here |= {placement: graphs_of_a_teacher(placement) for placement in ("replica", "shard")}
    Path(sys.argv[1]).write_text(json.dumps(seen_here))
