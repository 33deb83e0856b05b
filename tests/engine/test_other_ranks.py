"""A checkpoint resumes exactly on another number of ranks, with any contents."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import finish_ranks, start_ranks
from tests.engine.tiny import RUN, all_weights, make_engine, train
from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.engine import processes, ranks

GLOBAL_BATCH_SIZE = 12


def dump(engine, path):
    """Write all engine state by parameter name, assembled from all ranks."""
    optimizer, flat = engine.engine.basic_optimizer, engine.engine.module
    parts = [part for group in optimizer.param_groups for part in group["params"]]
    state = {f"bf16 {name}": p for name, p in flat.views([p.detach() for p in flat.flats]).items()}
    weights = [part.detach().clone() for part in parts]
    for key in ("fp32", "exp_avg", "exp_avg_sq", "momentum", "ema"):
        for part in parts if key != "fp32" else []:
            part.data.copy_(optimizer.state[part].get(key, torch.zeros_like(part)))
        state |= {f"{key} {name}": value for name, value in all_weights(engine).items()}
        for part, weight in zip(parts, weights):
            part.data.copy_(weight)
    for i, part in enumerate(parts):
        state[f"step {i}"] = torch.as_tensor(optimizer.state[part].get("step", 0))
    if ranks.rank() == 0:
        save_file({name: value.clone().contiguous() for name, value in state.items()}, path)


def go_on(workdir, path, optimizer):
    """Resume in `workdir`, train two updates and save, on any number of ranks.

    Write the full state after loading to PATH-loaded and after saving to PATH-saved.
    """
    processes.start_processes()
    torch.set_num_threads(1)
    start = load.newest_whole(load.find("auto", workdir))
    run = replace(RUN, optim=replace(RUN.optim, name=optimizer, ema_decay=0.9), global_batch_size=GLOBAL_BATCH_SIZE)
    engine, teacher = make_engine(run)
    state = load.restore(engine, start, steps_per_epoch=7, data=1)
    if start:
        dump(engine, f"{path}-loaded")
    train(engine, teacher, steps=2, num_images=GLOBAL_BATCH_SIZE)
    state.step += 2
    Saver(workdir, run.checkpoint, {}).save(engine, state)
    dump(engine, f"{path}-saved")
    assert not Path("unused").exists()
    processes.leave()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer, own_state", [("adamw", "exp_avg_sq"), ("muon", "momentum")])
def test_weights_moments_and_average_survive_a_change_of_ranks_bit_for_bit(tmp_path, optimizer, own_state):
    workdir = tmp_path / "run [1]+"  # characters that DeepSpeed treats as patterns
    before = None
    for i, world_size in enumerate((2, 3, 1, 2)):
        finish_ranks(start_ranks(world_size, "-m", __name__, workdir, tmp_path / f"dump{i}", optimizer))
        if before:
            loaded = load_file(tmp_path / f"dump{i}-loaded")
            assert [name for name in before | loaded if not torch.equal(before[name], loaded[name])] == []
        before = load_file(tmp_path / f"dump{i}-saved")
        averages = {name: average for name, average in before.items() if name.startswith("ema")}
        assert len(averages) > 20
        assert all(before[f"{own_state} student.blocks.0.{name}.weight"].any() for name in ("attn.qkv", "mlp.fc2"))
        for name, average in averages.items():
            assert not torch.equal(average, before[f"fp32{name[3:]}"]), "equal averages would prove nothing"
    left = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert left == {"latest", "step00000006", "step00000008"}, "no temporary file remains"


if __name__ == "__main__":
    go_on(Path(sys.argv[1]), *sys.argv[2:])
