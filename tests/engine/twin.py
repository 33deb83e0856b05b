"""Independent reference for `StudentEngine`: plain DeepSpeed, with one parameter per weight."""

from types import SimpleNamespace

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

from tests.engine import tiny
from vitkd_ds.engine.optimizers.base import optimizer_class
from vitkd_ds.engine.state_files import Collector

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class DeepSpeedsOwn:
    """Engine in which DeepSpeed computes the norm, checks for inf and NaN, clips and loads checkpoints, its default."""

    def __init__(self, run, precision, *, accumulation=1, compile=False, drop_path=0.0):
        config = (BF16 if precision == "bf16" else {}) | {
            "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True,
            "train_batch_size": run.global_batch_size, "gradient_accumulation_steps": accumulation,
            "gradient_clipping": run.optim.clip_grad_norm, "steps_per_print": None,
        }  # fmt: skip
        self.distiller = tiny.make_distiller()[0]
        tiny.set_drop_path(self.distiller.student, drop_path)
        start = {name: p.detach().clone() for name, p in self.distiller.named_parameters()}
        groups = tiny.parameter_groups(self.distiller, run.optim.weight_decay)
        adamw = optimizer_class("adamw")(groups, run.optim, is_fused=False)
        self.engine, *_ = deepspeed.initialize(model=self.distiller, optimizer=adamw, config=config)
        for name, p in self.distiller.named_parameters():
            safe_set_full_fp32_param(p, start[name])
        if compile:
            self.engine.compile(compile_kwargs={"options": {"fallback_random": True}})
        self.dtype = DTYPES[precision]

    def __call__(self, *args):
        return self.engine(*args)

    def backward(self, total):
        self.engine.backward(total)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def step(self):
        self.engine.step()
        is_applied = self.engine.was_step_applied()
        return SimpleNamespace(grad_norm=float(self.engine.get_global_grad_norm()), is_applied=is_applied)

    def set_lr(self, lr):
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def state_files(self):
        """Return the files that `save_checkpoint` would write on this rank. Collective."""
        self.engine.checkpoint_engine = Collector()
        self.engine._copy_recovery_script = lambda folder: None
        self.engine.save_checkpoint("unused", tag="step", save_latest=False)
        return self.engine.checkpoint_engine.saved

    def load(self, folder, tag):
        """Load a checkpoint with DeepSpeed's own code. Collective."""
        self.engine.checkpoint_engine, clip = Collector(), self.engine.optimizer.clip_grad
        assert self.engine.load_checkpoint(str(folder), tag=tag)[0]
        for kept in self.engine.basic_optimizer.state.values():
            kept["step"] = torch.as_tensor(kept["step"])
        self.engine.optimizer.clip_grad = clip  # loading sets the checkpoint's value, 0 for our own clipping

    def weights(self):
        """Return the fp32 weights of student and losses by name. Collective."""
        return {name: safe_get_full_fp32_param(p) for name, p in self.distiller.named_parameters()}
