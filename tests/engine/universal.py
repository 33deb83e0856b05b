"""Run by test_universal.py on any number of ranks: universal.py WORKDIR DS_CONFIG DUMP: resume in WORKDIR, write the
whole state as it is after loading to DUMP-loaded, train two updates, save, write the state to DUMP-saved.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.utils import safe_get_full_fp32_param
from safetensors.torch import save_file

from tests.engine.worker import RUN, make_batch, make_models, weights_of_terms
from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.engine.state_files import convert
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.models.build import check_pair, normalization_of
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features

GLOBAL_BATCH_SIZE = 12
UPDATES = 2


def whole_state(engine):
    """Everything of the engine by parameter name, put together from all ranks."""
    optimizer = engine.engine.basic_optimizer
    shards = [shard for group in optimizer.param_groups for shard in group["params"]]
    named = dict(engine.engine.module.named_parameters())
    state = {f"bf16 {name}": p.detach() for name, p in named.items()}
    weights = [shard.detach().clone() for shard in shards]
    for key in ("fp32", "exp_avg", "exp_avg_sq", "ema"):
        for shard in shards if key != "fp32" else []:
            shard.data.copy_(optimizer.state[shard][key])
        state |= {f"{key} {name}": safe_get_full_fp32_param(p) for name, p in named.items()}
        for shard, weight in zip(shards, weights):
            shard.data.copy_(weight)
    state |= {f"step {i}": torch.as_tensor(optimizer.state[shard]["step"]) for i, shard in enumerate(shards)}
    return {name: value.clone().contiguous() for name, value in state.items()}


def train(engine, teacher_model):
    """Updates on fixed data cut over the ranks; no random mask but the one of each rank's first draw."""
    images_BCHW, targets_BK = make_batch(GLOBAL_BATCH_SIZE)
    share = GLOBAL_BATCH_SIZE // ranks.world_size()
    mine = slice(ranks.rank() * share, (ranks.rank() + 1) * share)
    normalization = normalization_of(engine.engine.module.student)
    for _ in range(UPDATES):
        engine.set_lr(1e-3)
        with torch.no_grad():
            features = tap_features(teacher_model, normalization.apply(images_BCHW[mine], torch.float32))
        terms = engine(
            normalization.apply(images_BCHW[mine], engine.dtype), targets_BK[mine], features, weights_of_terms()
        )
        engine.backward(terms["total"])
        assert engine.step()


def main():
    workdir, ds_config, dump = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    start_processes()
    torch.set_num_threads(1)
    start = load.newest_whole(load.find("auto", workdir))
    optim = replace(RUN.optim, ema_decay=0.9)
    run = replace(RUN, ds_config=ds_config, optim=optim, global_batch_size=GLOBAL_BATCH_SIZE)
    student, teacher = make_models()
    distiller = Distiller(student, run.losses, check_pair(student, teacher, blocks=(0, 1)))
    config = student_ds_config(
        run, micro_batch_size=GLOBAL_BATCH_SIZE // ranks.world_size(), accumulation_steps=1,
        saved_layout=start.manifest["layout"] if start else None,
    )  # fmt: skip
    engine = StudentEngine(distiller, run, config)
    state = load.restore(engine, start, workdir=workdir, steps_per_epoch=7, data=1, convert=convert)
    if start:
        loaded = whole_state(engine)
        if ranks.rank() == 0:
            save_file(loaded, f"{dump}-loaded")
    train(engine, teacher)
    state.step += UPDATES
    Saver(workdir, run.checkpoint, {}).save(engine, state)
    saved = whole_state(engine)
    if ranks.rank() == 0:
        save_file(saved, f"{dump}-saved")
        print("optimizer", type(engine.engine.optimizer).__name__, "step", state.step)
    assert not Path("unused").exists()
    processes.leave()


if __name__ == "__main__":
    main()
