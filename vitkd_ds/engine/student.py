"""Student engine: DeepSpeed ZeRO-2 around the `Distiller`, with our own update and state files.

An update consists of `engine(...)` and `engine.backward(total)` for each micro-batch, and then one `engine.step()`.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.torch_autocast import autocast_if_enabled
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.clip import clip_gradients
from vitkd_ds.engine.compile import compile_options
from vitkd_ds.engine.ds_config import bucket_size, check_student, is_bf16, layout, load_ds_config, resolve_auto
from vitkd_ds.engine.flat import FlatModule
from vitkd_ds.engine.optimizers.base import optimizer_class
from vitkd_ds.engine.state_files import Collector, read_partition, with_names
from vitkd_ds.models.distiller import Distiller


def student_ds_config(run: Run, *, micro_batch_size: int, accumulation_steps: int) -> dict[str, Any]:
    """Return the student's DeepSpeed configuration, completed with the recipe's numbers. This needs no device.

    Raises:
        ValueError: the file contradicts the recipe, or has settings that the student engine does not support.
    """
    owned = {
        "train_batch_size": run.global_batch_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": run.optim.clip_grad_norm,
    }
    config = load_ds_config(run.ds_config, owned)
    check_student(config, source=run.ds_config)
    resolve_auto(config, world_size=ranks.world_size(), is_compiled=run.is_compiled)
    # `StudentEngine.step` clips, so DeepSpeed must not. DeepSpeed compares exact classes and calls ours untested.
    forced = {"gradient_clipping": 0.0, "zero_allow_untested_optimizer": True}
    return {"steps_per_print": None} | config | forced


class Outcome:
    """Result of one update, reduced over the ranks and copied to the host asynchronously.

    Reading a value waits until the copy is complete.
    """

    def __init__(self, agreed: Tensor) -> None:
        self._event = None
        self._agreed = agreed
        if agreed.device.type != "cpu":
            self._agreed = torch.empty_like(agreed, device="cpu", pin_memory=True).copy_(agreed, non_blocking=True)
            self._event = get_accelerator().current_stream().record_event()

    @cached_property
    def _values(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()  # waits for this update, not for later work in the queue
        return self._agreed.tolist()

    grad_norm = property(lambda self: self._values[0])
    """Gradient norm before clipping; nan if this update or an earlier one was skipped."""
    num_vetoes = property(lambda self: self._values[1])
    """Sum of `veto` over the ranks."""
    counted = property(lambda self: self._values[2])
    """Sum of `count` over the ranks."""
    group_norms = property(lambda self: self._values[3:])
    """Gradient norm of each parameter group before clipping; may be inf or nan."""

    @property
    def is_applied(self) -> bool:
        """Whether this update changed the weights. If it did not, no later update changes them either."""
        return not math.isnan(self.grad_norm)


class StudentEngine:
    """ZeRO engine that trains a `Distiller`. Every rank builds it and calls the same methods in the same order.

    The fp32 master weights start from the module's fp32 weights. DeepSpeed would round them to bf16 first.

    Args:
        module: distiller on the CPU in fp32, equal on all ranks. It is trained as a `FlatModule`.
        run: settings of the run.
        ds_config: configuration from `student_ds_config`.

    Attributes:
        distiller: the module, with its weights in flat parameters.
        group_names: names of the parameter groups, in the order of `Outcome.group_norms`.
        layout: settings that determine how the state is partitioned; see `vitkd_ds.engine.ds_config.layout`.
        dtype: dtype of the student's computations.
    """

    def __init__(self, module: Distiller, run: Run, ds_config: dict[str, Any]) -> None:
        self.distiller = module
        chosen = optimizer_class(run.optim.name)
        groups = chosen.groups(module, run.optim)
        self.group_names = tuple(group.name for group in groups)
        self._flat = FlatModule(module, groups, max_numel=bucket_size(ds_config))
        start = [flat.detach().clone() for flat in self._flat.flats]
        is_fused = get_accelerator().device_name() == "cuda"
        self._optimizer = chosen(self._flat.parameter_groups, run.optim, is_fused=is_fused)
        self.engine: Any = deepspeed.initialize(model=self._flat, optimizer=self._optimizer, config=ds_config)[0]
        self._collector = Collector()
        self.engine.checkpoint_engine = self._collector
        # save_checkpoint writes two scripts on rank 0 between two barriers; a failure there would hang the other ranks.
        self.engine._copy_recovery_script = lambda folder: None
        self.layout = layout(ds_config, ranks.world_size())
        for flat, values in zip(self._flat.flats, start):
            safe_set_full_fp32_param(flat, values.to(flat.device))
        if run.is_compiled:
            # fallback_random gives masks and drop path the same random numbers as without compilation.
            options = compile_options(run.compile) | {"fallback_random": True}
            self.engine.compile(compile_kwargs={"dynamic": False, "options": options})
        # Until the first mark, torch takes every call of a compiled model for a new step. The first call of the student
        # would then free the teacher's features.
        torch.compiler.cudagraph_mark_step_begin()
        self.dtype = torch.bfloat16 if is_bf16(ds_config) else torch.float32
        # DeepSpeed converts only parameters; an fp32 buffer would not match their dtype.
        self.distiller.student.to(self.dtype)
        self._max_norm = run.optim.clip_grad_norm
        self._failed = torch.zeros((), device=self.engine.device)

    def __call__(self, *args: Any) -> dict[str, Tensor]:
        """Run the distiller's forward through the engine."""
        return self.engine(*args)

    def rehearse(self, *args: Any) -> None:
        """Run forward and backward without effect, so that torch.compile compiles them. Collective.

        Weights, gradients, buffers and the engine's counters stay as they are. Random numbers are drawn.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self._flat.buffers()]
        # Not through the engine, which would count a micro-batch, and keep and reduce its gradient.
        with autocast_if_enabled(self.engine):
            total = self._flat(*args)["total"]
        torch.autograd.grad(total, self._flat.flats, allow_unused=True)
        self._flat.release()
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.compiler.cudagraph_mark_step_begin()

    def backward(self, total: Tensor) -> None:
        """Run backward for a micro-batch. The gradient of an update is the mean over its micro-batches. Collective."""
        self.engine.backward(total)
        self._flat.release()
        torch.compiler.cudagraph_mark_step_begin()  # a CUDA graph may now overwrite this micro-batch's results
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # no update yet: DeepSpeed only counts the micro-batch

    def step(self, *, veto: Tensor | None = None, count: Tensor | None = None) -> Outcome:
        """Clip the gradient and update the weights, once after all micro-batches of an update. Collective.

        The update is skipped, and so are all later ones, if the gradient is not finite or any rank's `veto` is
        positive. Nothing here waits for the device; read the outcome later.

        Args:
            veto: fp32 scalar on the device, summed over the ranks in the all-reduce of the norm; None for 0.
            count: fp32 scalar on the device, summed in the same all-reduce; None for 0.
        """
        zero = torch.zeros((), device=self.engine.device)
        veto = zero if veto is None else veto
        count = zero if count is None else count
        gradients = self.engine.optimizer.averaged_gradients
        # Sort by group: the norm's last bit depends on the order, and the dict is in the order of backward.
        ordered = [gradients[group] for group in sorted(gradients)]
        agreed = clip_gradients(ordered, self._max_norm, veto=veto, count=count)
        self._failed = torch.maximum(self._failed, torch.isnan(agreed[0]).float())
        agreed[0] = torch.where(self._failed > 0, torch.nan, agreed[0])
        self._optimizer.leave_out = self._failed
        self.engine.step()
        return Outcome(agreed)

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next update."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr

    def student_weights(self, *, average: bool = True) -> dict[str, Tensor]:
        """Return the student's whole fp32 state dict on every rank's CPU. Collective.

        For `average`, see `weights_of`.
        """
        return self.weights_of("student", average=average)["student"]

    def weights_of(self, *modules: str, average: bool = True) -> dict[str, dict[str, Tensor]]:
        """Return whole fp32 state dicts of submodules of the distiller, on every rank's CPU. Collective.

        Args:
            modules: names of the submodules (student, or the name of a loss term), which are the keys of the result.
            average: return moving averages in place of the trained weights, if the run keeps averages. If False, return
                the trained weights.
        """
        swapped = []  # DeepSpeed gathers only the fp32 weights, so the averages temporarily replace them
        for part, state in self._optimizer.state.items() if average else ():
            if "ema" in state:  # absent before the first update, when weights and average are equal
                swapped.append((part, part.detach().clone()))
                part.data.copy_(state["ema"])
        try:
            flats = [safe_get_full_fp32_param(flat).cpu() for flat in self._flat.flats]
        finally:
            for part, original in swapped:
                part.data.copy_(original)
        weights = self._flat.views(flats)
        found = {}
        for module in modules:
            # Buffers and frozen weights; the trained weights are in the flat parameters.
            state = self.distiller.get_submodule(module).state_dict()
            prefix = f"{module}."
            found[module] = {key.removeprefix(prefix): p for key, p in weights.items() if key.startswith(prefix)}
            found[module] |= {key: value.float().cpu() for key, value in state.items()}
        return found

    def state_files(self) -> dict[str, Any]:
        """Return this rank's checkpoint files: file name to the object for `torch.save`. Collective.

        The objects refer to the state of the engine, so write them to disk before the next update.
        """
        self.engine.save_checkpoint("unused", tag="step", save_latest=False)
        return with_names(self._collector.saved, self._flat)

    def load(self, checkpoint: Path) -> None:
        """Restore weights, optimizer state and moving average from a checkpoint of any number of ranks. Collective.

        Raises:
            ValueError: the checkpoint is damaged or belongs to another module.
        """
        masters = self.engine.optimizer.single_partition_of_fp32_groups
        sizes = [len(master) for master in masters]
        saved = ranks.together(lambda: read_partition(checkpoint, self._flat.places, sizes))
        for master, group in zip(masters, saved.groups):
            master.data.copy_(group.pop("fp32"))
            self._optimizer.state[master] = {key: value.to(master.device) for key, value in group.items()}
        self.engine.optimizer.update_lp_params()
        if differing := self.distiller.state_dict().keys() ^ saved.others.keys():
            raise ValueError(
                f"{checkpoint} does not fit this student: buffers {', '.join(sorted(differing)[:3])} differ"
            )
        self.distiller.load_state_dict(saved.others)
