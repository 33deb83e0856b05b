"""torch.compile changes only speed: student and teacher on one rank, compiled with the shipped settings or not at all.
torch.compile changes only speed: student and teacher on one rank, compiled with the shipped settings or not at all."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx
from torch._dynamo.utils import counters

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import (
    FP32_RUN,
    RUN,
    all_weights,
    forward,
    make_batch,
    make_engine,
    make_teacher,
    set_drop_path,
    tensors,
    train,
)
from tests.engine.twin import DeepSpeedsOwn
from vitkd_ds.engine.processes import start_processes


def losses(run):
    """Totals of four updates in fp32, masks and drop path included."""
    engine, teacher = make_engine(run)
    set_drop_path(engine.distiller.student, 0.3)
    totals = []
    for step in range(4):
        engine.set_lr(1e-3)
        torch.manual_seed(step)
        terms = forward(engine, teacher, *make_batch())
        engine.backward(terms["total"])
        assert engine.step().is_applied
        totals.append(terms["total"].item())
    return totals


def compiled_twins():
    """Totals, norms and the head's bias in bf16, compiled: ours, and DeepSpeed's own with one parameter per weight."""
    ours, teacher = make_engine(replace(RUN, compile="default"))
    found = []
    for engine, weights in ((ours, all_weights), (DeepSpeedsOwn(RUN, "bf16", compile=True), DeepSpeedsOwn.weights)):
        set_drop_path(engine.distiller.student, 0.3)
        found.append([*train(engine, teacher), weights(engine)["student.head.bias"].tolist()])
    return found


def options_of_choices():
    """The inductor options for compiling the student, a replica and a shard's blocks, for each setting."""
    found, compile_fx = {}, torch._inductor.compile_fx.compile_fx

    def noting(graph, inputs, config_patches=None, **others):
        options.append(config_patches or {})
        return compile_fx(graph, inputs, config_patches=None, **others)  # their effect is up to inductor

    with mock.patch.object(torch._inductor.compile_fx, "compile_fx", noting):
        for choice in ("max-autotune", "reduce-overhead"):
            engine, plain = make_engine(replace(RUN, compile=choice))
            options = found[f"{choice} student"] = []
            engine.backward(forward(engine, plain, *make_batch(), engine.dtype)["total"])
            for placement in ("replica", "shard"):
                options = found[f"{choice} {placement}"] = []
                make_teacher(placement, compile=choice)(make_batch(8)[0])
    return found


def graphs_of_a_teacher(placement):
    """Graphs compiled for a training micro-batch, a smaller evaluation one, and training again; and whether the
    smaller one's features match an uncompiled teacher's."""
    teacher = make_teacher(placement, compile="default")
    images_BCHW = make_batch(8)[0].contiguous(memory_format=torch.channels_last)  # contiguous as the loader's images
    counters.clear()
    graphs = []
    for images in (images_BCHW, images_BCHW[:5], images_BCHW):
        features = teacher(images)
        assert all(len(feature) == len(images) for feature in tensors(features))
        graphs.append(counters["stats"]["unique_graphs"])
    plain, found = make_teacher(placement)(images_BCHW[:5]), teacher(images_BCHW[:5])
    difference = max((a.float() - b.float()).abs().max().item() for a, b in zip(tensors(plain), tensors(found)))
    return {"graphs": graphs, "difference": difference}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_student_has_the_same_losses_in_fp32_and_a_smaller_micro_batch_compiles_nothing(tmp_path):
    finish_ranks(start_ranks(1, "-m", __name__, tmp_path / "seen.json"), timeout=500)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["compiled"] == pytest.approx(seen["eager"], rel=1e-5)
    assert len(set(seen["eager"])) == 4
    assert seen["flat"] == seen["one parameter a weight"], "flat parameters change no bit"
    tuned = {"max_autotune": True, "coordinate_descent_tuning": True}
    graphs, own_draws = {"triton.cudagraphs": True}, {"fallback_random": True}
    for choice, options, gathered in (("max-autotune", tuned, tuned), ("reduce-overhead", graphs, {})):
        expected = {"student": options | own_draws, "replica": options, "shard": gathered}
        for who, each in expected.items():
            found = seen["options"][f"{choice} {who}"]
            assert found and all(one == each for one in found), f"{choice} {who}: {found}"
    for teacher in (seen["replica"], seen["shard"]):
        assert teacher["graphs"][0] > 0 and len(set(teacher["graphs"])) == 1
        assert teacher["difference"] < 0.1, "bf16 rounding"


if __name__ == "__main__":
    start_processes()
    torch.set_num_threads(1)
    seen = {
        name: losses(replace(FP32_RUN, compile="default" if name == "compiled" else "off"))
        for name in ("eager", "compiled")
    }
    seen["flat"], seen["one parameter a weight"] = compiled_twins()
    seen |= {placement: graphs_of_a_teacher(placement) for placement in ("replica", "shard")}
    torch._dynamo.reset()  # otherwise the compiled code would be reused
    seen["options"] = options_of_choices()
    Path(sys.argv[1]).write_text(json.dumps(seen))
