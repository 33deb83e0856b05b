"""Runs with data.image_sizes: resumed within and across phases, and graphs compiled before the first update."""

import json
import shutil
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch._inductor.compile_fx
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters

from tests.conftest import assert_same_result, finish_ranks, metrics_of, run_several, start_ranks
from tests.engine.tiny import FP32_RUN, OTHERS
from vitkd_ds.cli import parse_run
from vitkd_ds.config.losses import NKDTerm, ViTKDTerm
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.train.parts import build_parts
from vitkd_ds.train.rehearsal import compile_sizes
from vitkd_ds.train.step import settle, train_step

SIZES = "--data.image_sizes=12:1,20:2,28:2"


def options(workdir, data):
    """Five epochs of seven updates: sizes 12, 20, 20, 28, 28."""
    return [
        "--recipe=demo", "--debug", f"--workdir={workdir}", f"--data.train={data}", "--max_steps=35", SIZES,
        "--global_batch_size=8", "--micro_batch_size_per_gpu=4", "--checkpoint.every_steps=5", "--optim.ema_decay=0.9",
        "--checkpoint.keep_last=20", "--augment.rand_augment=rand-m9-mstd0.5-inc1", "--augment.mixup_alpha=0.8",
        "--student.drop_path_rate=0.2", "--optim.lr=0.002", "--data.max_val_images=64", "--eval_every_epochs=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_within_and_across_phases(small_beton, tmp_path, demo_cache):
    whole = tmp_path / "whole"
    said = run_several(1, tmp_path / "commands", [options(whole, small_beton)])[0]["said"]
    for line in ("epochs 1 to 1: images of 12 px", "epochs 2 to 3: images of 20 px", "epochs 4 to 5: images of 28 px"):
        assert line in said
    tops = [line.partition(", 95 %")[0] for line in said.splitlines() if line.startswith("teacher") and "top-1" in line]
    assert [line.partition(" top-1")[0] for line in tops] == ["teacher:", "teacher at 12 px:", "teacher at 20 px:"]
    assert len({line.partition("top-1 ")[2] for line in tops}) == 3, "each is measured at its size"
    config = json.loads((whole / "config.json").read_text())
    assert config["phases"] == [
        {"image_size": size, "epochs": epochs, "micro_batch_size": 4}
        for size, epochs in ((12, [1, 1]), (20, [2, 3]), (28, [4, 5]))
    ]
    student = json.loads((whole / "student.json").read_text())
    assert student["image_size"] == 28 and "dynamic_img_size" not in student["args"]
    # In an epoch of the second size, at the end of the first phase, and at an end of an epoch within a phase.
    resumed = {"within": 10, "end": 7, "epoch": 14, "last": 25}
    commands = []
    for name, step in resumed.items():
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / "done").unlink()
        (tmp_path / name / "checkpoints" / "latest").write_text(f"step{step:08d}")
        for later in (tmp_path / name / "checkpoints").glob("step*"):
            if int(later.name[4:]) > step:
                shutil.rmtree(later)
        commands.append(options(tmp_path / name, small_beton))
    commands.append([*options(tmp_path / "within", small_beton), "--data.image_sizes=12:2,20:1,28:2"])
    *outcomes, refused = run_several(1, tmp_path / "commands", commands)
    for (name, step), outcome in zip(resumed.items(), outcomes, strict=True):
        assert f"step {step} of 35" in outcome["said"]
        assert_same_result(tmp_path / name, whole)
    assert "data.image_sizes: '12:1,20:2,28:2' there, '12:2,20:1,28:2' now" in refused["refused"]
    assert len({line["total"] for line in metrics_of(whole) if "total" in line}) == 35


def weights_after(run, device, *, is_rehearsed):
    """The distiller's state after an update of each size, and after the rehearsal the state before it."""
    parts = build_parts(run, device)
    states = [parts.engine.weights_of("student", *parts.engine.distiller.parts)]
    if is_rehearsed:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        compile_sizes(parts)
        assert torch.equal(before, torch.get_rng_state())
    graphs = counters["stats"]["unique_graphs"]
    for epoch in (0, 1, 3):
        with closing(parts.train_loader.epoch(epoch)) as micro_batches:
            assert next(parts.train_loader.epoch(epoch))[0].shape[2] == parts.phases.size_at(epoch)
            assert not settle(train_step(parts, micro_batches, 7 * epoch), run)
        states.append(parts.engine.weights_of("student", *parts.engine.distiller.parts))
    return states, graphs, counters["stats"]["unique_graphs"]


def run_of(folder, data, **changes):
    flags = {name: value or "true" for name, _, value in (o[2:].partition("=") for o in options(folder, data))}
    run = replace(parse_run((), flags), ds_config=FP32_RUN.ds_config, **changes)
    others = replace(OTHERS, nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(weight=1, alpha=1e-3, beta=1e-3))
    return replace(run, losses=others)


def main(folder, data):
    device = start_processes()
    torch.set_num_threads(1)
    plain, *_ = weights_after(run_of(folder, data), device, is_rehearsed=False)
    seen = {"same": []}
    for name, changes in {"eager": {}, "compiled": {"compile": "default"}}.items():
        counters.clear()
        # The compiler is not under test here, only what is given to it.
        eager = mock.patch.object(
            torch._inductor.compile_fx, "compile_fx", lambda graph, inputs, **_: aot_eager(graph, inputs)
        )
        with eager, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=1):
            found, *seen[name] = weights_after(run_of(folder, data, **changes), device, is_rehearsed=True)
        for before, after in zip(plain, found, strict=True):
            parts = [(before[part][key], after[part][key]) for part in before for key in before[part]]
            seen["same"].append(all(torch.equal(*pair) for pair in parts))
            seen[f"{name} close"] = all(torch.allclose(*pair, rtol=1e-3, atol=1e-5) for pair in parts)
    (folder / "seen.json").write_text(json.dumps(seen))
    leave()


@pytest.mark.slow
def test_a_rehearsal_changes_no_bit_and_leaves_nothing_to_compile_at_any_size(small_beton, tmp_path, demo_cache):
    finish_ranks(start_ranks(1, "-m", __name__, tmp_path, small_beton))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["same"][:4] == [True] * 4, "uncompiled, before and after each update"
    assert seen["compiled close"]
    before, after = seen["compiled"]
    assert before == after > 0 == seen["eager"][0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
