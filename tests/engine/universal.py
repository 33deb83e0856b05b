"""Run by test_universal.py on any number of ranks: universal.py WORKDIR DUMP: resume in WORKDIR, write the whole state
as it is after loading to DUMP-loaded, train two updates, save, write the state to DUMP-saved.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

from tests.engine.tiny import RUN, make_engine, train
from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.engine import processes, ranks

GLOBAL_BATCH_SIZE = 12
UPDATES = 2


def whole_state(engine):
    """Everything of the engine by parameter name, put together from all ranks."""
    optimizer = engine.engine.basic_optimizer
    parts = [part for group in optimizer.param_groups for part in group["params"]]
    named = dict(engine.engine.module.named_parameters())
    state = {f"bf16 {name}": p.detach() for name, p in named.items()}
    weights = [part.detach().clone() for part in parts]
    for key in ("fp32", "exp_avg", "exp_avg_sq", "ema"):
        for part in parts if key != "fp32" else []:
            part.data.copy_(optimizer.state[part][key])
        state |= {f"{key} {name}": safe_get_full_fp32_param(p) for name, p in named.items()}
        for part, weight in zip(parts, weights):
            part.data.copy_(weight)
    state |= {f"step {i}": torch.as_tensor(optimizer.state[part]["step"]) for i, part in enumerate(parts)}
    return {name: value.clone().contiguous() for name, value in state.items()}


def dump(engine, path):
    state = whole_state(engine)
    if ranks.rank() == 0:
        save_file(state, path)


def main():
    workdir, path = Path(sys.argv[1]), sys.argv[2]
    processes.start_processes()
    torch.set_num_threads(1)
    start = load.newest_whole(load.find("auto", workdir))
    run = replace(RUN, optim=replace(RUN.optim, ema_decay=0.9), global_batch_size=GLOBAL_BATCH_SIZE)
    engine, teacher = make_engine(run, saved_layout=start.manifest["layout"] if start else None)
    state = load.restore(engine, start, workdir=workdir, steps_per_epoch=7, data=1)
    if start:
        dump(engine, f"{path}-loaded")
    train(engine, teacher, steps=UPDATES, num_images=GLOBAL_BATCH_SIZE)
    state.step += UPDATES
    Saver(workdir, run.checkpoint, {}).save(engine, state)
    dump(engine, f"{path}-saved")
    assert not Path("unused").exists()
    processes.leave()


if __name__ == "__main__":
    main()
