"""Run on one or two ranks by test_fast_step.py: the shipped settings against DeepSpeed doing everything itself.

Tiny models, real engines; what is observed goes to rank 0's seen.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from deepspeed.utils import z3_leaf_module

from tests.engine.worker import RUN, make_batch, make_engine, make_models, make_teacher, train, weights_of_terms
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import start_processes
from vitkd_ds.engine.student import StudentEngine
from vitkd_ds.models.build import check_pair, normalization_of
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import tap_features

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
DEEPSPEEDS = {"bf16": BF16, "fp32": {}}
OURS_FP32 = {"zero_optimization": {"stage": 2, "compute_grad_norm": False, "reduce_scatter": False}}


class DeepSpeedsOwn(StudentEngine):
    """DeepSpeed computes the norm, looks for inf and nan, and clips, as it does by default."""

    def step(self):
        self.engine.step()
        self.grad_norm = float(self.engine.get_global_grad_norm())
        return self.engine.was_step_applied()


def make_deepspeeds_own(config, accumulation):
    student, teacher = make_models()
    distiller = Distiller(student, RUN.losses, check_pair(student, teacher, blocks=(0, 1)))
    config = config | {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "train_batch_size": RUN.global_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": RUN.optim.clip_grad_norm,
    }
    return DeepSpeedsOwn(distiller, RUN, config), teacher


def weights_after(engine):
    return [engine.student_weights()[name].tolist() for name in ("head.bias", "blocks.2.norm1.weight")]


def observe_exactness(seen, folder):
    """Totals, norms and weights of five updates under each configuration."""
    path = folder / "fp32_ours.json"
    ranks.on_main(lambda: path.write_text(json.dumps(OURS_FP32)))
    for precision, ds_config in (("bf16", RUN.ds_config), ("fp32", str(path))):
        for accumulation in (1, 2):
            for who, (engine, teacher) in (
                ("ours", make_engine(replace(RUN, ds_config=ds_config), accumulation=accumulation)),
                ("deepspeed", make_deepspeeds_own(DEEPSPEEDS[precision], accumulation)),
            ):
                losses = train(engine, teacher, steps=5, accumulation=accumulation)
                seen[f"{precision} {who} {accumulation}"] = [*losses, weights_after(engine)]


def observe_nonfinite(seen, precision, run, *, is_fused=False):
    """The last rank's labels are nan in the second of three updates."""
    engine, teacher = make_engine(run)
    for group in engine.engine.basic_optimizer.param_groups:
        group["fused"] = is_fused  # as on a GPU
    normalization = normalization_of(engine.engine.module.student)
    images_BCHW, targets_BK = make_batch(8)
    features = tap_features(teacher, normalization.apply(images_BCHW, torch.float32))
    engine.set_lr(1e-3)
    applied, norms, weights = [], [], [weights_after(engine)]
    for step in range(3):
        is_bad = step == 1 and ranks.rank() == ranks.world_size() - 1
        targets = targets_BK * float("nan") if is_bad else targets_BK
        terms = engine(normalization.apply(images_BCHW, engine.dtype), targets, features, weights_of_terms())
        engine.backward(terms["total"])
        applied.append(engine.step())
        norms.append(engine.grad_norm)
        weights.append(weights_after(engine))
    flags = [ranks.sum_over_ranks(torch.tensor(float(flag))).item() for flag in applied]
    seen[f"{precision} updates applied, sum over ranks"] = flags
    seen[f"{precision} norms finite"] = [norm == norm for norm in norms]
    seen[f"{precision} weights moved"] = [before != after for before, after in zip(weights, weights[1:])]
    seen[f"{precision} weights finite"] = bool(torch.isfinite(torch.tensor(weights[-1][0])).all())


def observe_checkpointing(seen, folder):
    """Activation checkpointing computes blocks twice and changes nothing."""
    run = replace(RUN, ds_config=str(folder / "fp32_ours.json"))
    for checkpointed in (False, True):
        engine, teacher = make_engine(run)
        engine.engine.module.student.set_grad_checkpointing(checkpointed)
        seen[f"checkpointed {checkpointed}"] = [*train(engine, teacher), weights_after(engine)]


def observe_kept_teacher(seen):
    """How much of a shard is whole after two forwards: all of it alone, nothing on more ranks."""
    teacher = make_teacher("shard")
    images_BCHW, _ = make_batch(8)
    teacher(images_BCHW)
    seen["leaf modules"] = [z3_leaf_module(block) for block in teacher.module.module.model.blocks]
    same = torch.equal(teacher(images_BCHW).deep_BPD, make_teacher("replica")(images_BCHW).deep_BPD)
    parameters = list(teacher.module.parameters())
    seen["live part"] = sum(p.numel() for p in parameters) / sum(p.ds_numel for p in parameters)
    seen["shard equals replica"] = same


def main():
    folder = Path(sys.argv[1])
    start_processes()
    torch.set_num_threads(1)
    seen = {}
    observe_exactness(seen, folder)
    observe_nonfinite(seen, "bf16", RUN)
    observe_nonfinite(seen, "fp32", replace(RUN, ds_config=str(folder / "fp32_ours.json")))
    averaged = replace(RUN, optim=replace(RUN.optim, ema_decay=0.5))
    observe_nonfinite(seen, "fused", averaged, is_fused=True)
    observe_checkpointing(seen, folder)
    observe_kept_teacher(seen)
    if ranks.rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main()
