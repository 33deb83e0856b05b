"""The student's DeepSpeed engine, and how processes and devices are set up for both engines.

With `vitkd_ds.engine.teacher` and `vitkd_ds.engine.state_files` the only modules that import deepspeed.
"""

import logging
import math
import os
import resource
import tempfile
import time
import warnings
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Iterator

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import Tensor, nn

from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.clipping import clip_gradients
from vitkd_ds.engine.ds_config import computes_norm, is_bf16, layout, load_ds_config, resolve_auto, stage
from vitkd_ds.engine.optimizer import AdamWithEMA
from vitkd_ds.engine.state_files import Collector


def start_processes(timeout_minutes: float = 10) -> torch.device:
    """Join the process group and return this rank's device. All ranks must call it.

    `timeout_minutes` is the group's; a little more, so that the watchdog with its better message comes first.

    On CPU, DeepSpeed would compile a shared-memory all-reduce at the first start: a minute, and a killed build leaves
    a lock on which every later start waits for ever. gloo does the same sums, so the op is marked as not available.
    """
    ranks.set_rank_variables()
    # DeepSpeed 0.19 calls it; nothing that a user could do about it.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor. is deprecated", FutureWarning)
    deepspeed_logger.setLevel(logging.WARNING)
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.set_num_threads(ranks.num_cpus())
    else:
        ranks.choose_device(accelerator.device_count())
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(verbose=False, timeout=timedelta(minutes=1.2 * timeout_minutes))
    return torch.device(accelerator.device_name(int(os.environ["LOCAL_RANK"])))


def student_ds_config(
    run: Run, *, micro_batch_size: int, accumulation_steps: int, saved_layout: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The student's DeepSpeed configuration with the recipe's numbers; reads one file, touches no device.

    Args:
        saved_layout: of the checkpoint that will be loaded; another one than this engine's is read in DeepSpeed's
            universal format.

    Raises:
        ValueError: the file contradicts the recipe, or asks for a stage that the student cannot have.
    """
    owned = {
        "train_batch_size": run.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": run.optim.clip_grad_norm,
    }
    config = load_ds_config(run.ds_config, owned)
    if stage(config) not in (1, 2):
        raise ValueError(f"{run.ds_config} must have ZeRO stage 1 or 2 for the student, found {stage(config)}")
    if not computes_norm(config):
        config["gradient_clipping"] = 0.0  # StudentEngine clips, to the recipe's norm
    resolve_auto(config, world_size=ranks.world_size(), is_compiled=run.compile)
    # AdamWithEMA is torch.optim.AdamW to DeepSpeed, but its list of tested optimizers goes by the exact class.
    config = {"steps_per_print": None} | config | {"zero_allow_untested_optimizer": True}
    if saved_layout not in (None, layout(config, ranks.world_size())):
        config["checkpoint"] = config.get("checkpoint", {}) | {"load_universal": True}
    return config


class StudentEngine:
    """The ZeRO engine that trains a `Distiller`; every rank builds it and calls the same methods in the same order.

    The fp32 master weights start from the module's fp32 weights; DeepSpeed alone would start them from the weights
    rounded to bf16.

    Args:
        module: a `Distiller` on the CPU in fp32, the same on every rank; `module.student` is what is exported.
        run: the optimizer's numbers.
        ds_config: from `student_ds_config`.
        parameter_groups: AdamW's groups over the parameters of `module`.
    """

    def __init__(
        self, module: nn.Module, run: Run, ds_config: dict[str, Any], parameter_groups: list[dict[str, Any]]
    ) -> None:
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        optimizer = AdamWithEMA(
            parameter_groups,
            ema_decay=run.optim.ema_decay,
            lr=run.optim.lr,
            betas=run.optim.betas,
            eps=run.optim.eps,
            fused=get_accelerator().device_name() == "cuda",
        )
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
        self.engine.checkpoint_engine = Collector()
        # It would write two scripts, and could fail, on rank 0 between two barriers of save_checkpoint.
        self.engine._copy_recovery_script = lambda folder: None
        self.layout = layout(ds_config, ranks.world_size())
        """How the state is cut over ranks; see `vitkd_ds.engine.ds_config.layout`."""
        for name, p in module.named_parameters():
            safe_set_full_fp32_param(p, start[name].to(p.device))
        if run.compile:
            # With torch's own random numbers: masks and drop path are then drawn as without compilation.
            self.engine.compile(compile_kwargs={"options": {"fallback_random": True}})
        self.dtype = torch.bfloat16 if is_bf16(ds_config) else torch.float32
        """What the student computes in."""
        self._max_norm = None if computes_norm(ds_config) else run.optim.clip_grad_norm
        self._norm = self.num_vetoes = self.counted = 0.0
        self._agreed: Tensor | None = None
        """Norm, vetoes, count: on the device, between `clip` and `step`."""

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        """The distiller's forward, through the engine."""
        return self.engine(*args)

    def backward(self, total: Tensor) -> None:
        """Backward of one micro-batch's total; divides it by the number of micro-batches per update. Collective."""
        self.engine.backward(total)

    def clip(self, *, veto: Tensor, count: Tensor) -> None:
        """Clip the gradient of the update that is due; `step` comes next. Collective; does not wait for the device.

        What all ranks must know at an update rides on the norm's all-reduce, and is read with the norm.

        Args:
            veto: fp32 scalar on the device; above 0 on any rank, all leave the update out.
            count: fp32 scalar on the device, to be summed over the ranks.
        """
        if self._max_norm is None:
            self._agreed = ranks.sum_over_ranks(torch.stack([torch.zeros_like(veto), veto, count]))
        else:
            groups = self.engine.optimizer.averaged_gradients.values()
            self._agreed = clip_gradients(groups, self._max_norm, veto=veto, count=count)

    def step(self) -> bool:
        """End a micro-batch; after the last one of an update, clip unless `clip` was called, and update. Collective;
        waits for the device, once in an update.

        Sets `num_vetoes` and `counted`, the sums over the ranks of what `clip` was given.

        Returns:
            False if the update was left out on all ranks, because a gradient is inf or nan or there was a veto; and for
            a micro-batch that does not end an update.
        """
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()
            return False
        if self._agreed is None:
            zero = torch.zeros((), device=self.engine.device)
            self.clip(veto=zero, count=zero)
        if self._max_norm is not None and self.engine.basic_optimizer.param_groups[0]["fused"]:
            # The kernel itself leaves the update out: all of it is queued before anything is waited for.
            self.engine.basic_optimizer.found_inf = torch.isnan(self._agreed[0]).float()
            self.engine.step()
            self._read_agreed()
        else:
            self._read_agreed()
            if self._max_norm is None and self.num_vetoes:
                return False
            # Only a gradient that is all nan goes through DeepSpeed's scan, which finds it and leaves the update out.
            self.engine.optimizer.check_grad_overflow = self._max_norm is None or math.isnan(self._norm)
            self.engine.step()
        return self.engine.was_step_applied() and not math.isnan(self._norm)

    def _read_agreed(self) -> None:
        self._norm, self.num_vetoes, self.counted = self._agreed.tolist()
        self._agreed = None

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def grad_norm(self) -> float:
        """Norm of the whole gradient of the last update, before clipping."""
        return float(self.engine.get_global_grad_norm()) if self._max_norm is None else self._norm

    def student_weights(self, *, average: bool = True) -> dict[str, Tensor]:
        """The student's fp32 weights, whole, on the CPU of every rank. Collective.

        Args:
            average: their moving average when the run keeps one; False gives the weights themselves.
        """
        student = self.engine.module.student
        with self._average_in_place() if average else nullcontext():
            weights = {name: safe_get_full_fp32_param(p).cpu() for name, p in student.named_parameters()}
        return weights | {name: buffer.detach().float().cpu() for name, buffer in student.named_buffers()}

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        """Put each shard's moving average where its fp32 weights are, and back again."""
        optimizer = self.engine.basic_optimizer
        swapped = []
        for group in optimizer.param_groups if optimizer.ema_decay else []:
            for shard in group["params"]:
                if "ema" in optimizer.state[shard]:  # not before the first update: the average is the start itself
                    swapped.append((shard, shard.detach().clone()))
                    shard.data.copy_(optimizer.state[shard]["ema"])
        try:
            yield
        finally:
            for shard, weights in swapped:
                shard.data.copy_(weights)

    def shards(self) -> dict[str, Any]:
        """What this rank has to write for a checkpoint: file name -> what torch.save shall store. Collective.

        References to the live state: to be written before the next update.
        """
        self.engine.save_checkpoint("unused", tag="step", save_latest=False)
        saved = self.engine.checkpoint_engine.saved
        for content in saved.values():
            # The recipe owns the clipping. An engine that leaves it to us refuses states with any.
            if "optimizer_state_dict" in content:
                content["optimizer_state_dict"]["clip_grad"] = 0.0
        return saved

    def load(self, folder: str, tag: str) -> None:
        """Restore weights, optimizer and moving average from folder/tag. Collective.

        The files must have this engine's layout, or be converted by `vitkd_ds.engine.state_files.convert` where it is another.
        """
        clip_grad = self.engine.optimizer.clip_grad
        with tempfile.TemporaryDirectory() as links:  # DeepSpeed takes paths for patterns: no "[" or "*" may be in them
            link = Path(links, "checkpoints")
            link.symlink_to(Path(folder).resolve())
            path, _ = self.engine.load_checkpoint(str(link), tag=tag)
        self.engine.optimizer.clip_grad = clip_grad  # not the one of the checkpoint's engine
        if path is None:
            raise ValueError(f"{folder}/{tag} must be a checkpoint, found none: check --resume")
        for shard, kept in self.engine.basic_optimizer.state.items():
            # A fused update reads it on the device; from a converted checkpoint it comes on the CPU.
            kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32, device=shard.device)


def peak_memory_gib() -> float:
    """Largest device memory since the start in GiB; on CPU the largest resident memory of this process."""
    if get_accelerator().device_name() == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return get_accelerator().max_memory_allocated() / 2**30


def synchronised_time() -> float:
    """Seconds, after the device has finished what was asked of it."""
    get_accelerator().synchronize()
    return time.perf_counter()
