"""Training loops that `benchmarks/step.py` times, with a common interface: teach, forward, backward, update.

All variants start from the same weights and get the same images. `step.py` compares their first losses, so that no
variant is faster only because it computes something else. The images are random and already on the device, so loading
and mixing are not timed. There is no moving average of the weights, because the plain loops have none.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo as dynamo
from torch import Tensor

from vitkd_ds.commands.plan import shapes
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.build import normalization_of
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.recipes import build_run
from vitkd_ds.train.parts import Models, build_models

VARIANTS = ("eager", "compiled", "replica", "shard", "offload")
CHOICES = {
    "max-autotune": {"compile": "max-autotune"},
    "reduce-overhead": {"compile": "reduce-overhead"},
    "fp8": {"fp8": True},
}
"""Additional variants for --variants: a replicated teacher, and these settings instead of the shipped ones."""
RECIPES = {
    "tiny": "deit_tiny_from_deit3_small",
    "small": "deit_small_from_deit3_base",
    "base": "deit_base_from_deit3_large",
}
TOY = {
    "tiny": ({"embed_dim": 16, "depth": 2, "num_heads": 2}, {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "small": ({"embed_dim": 32, "depth": 2, "num_heads": 2}, {"embed_dim": 64, "depth": 2, "num_heads": 2}),
    "base": ({"embed_dim": 64, "depth": 2, "num_heads": 2}, {"embed_dim": 96, "depth": 3, "num_heads": 2}),
}
"""Model arguments of student and teacher with --debug."""


@dataclass(frozen=True)
class Pair:
    """A recipe, and its student and teacher with random fp32 weights on the CPU."""

    name: str
    run: Run
    models: Models

    @property
    def image_flops(self) -> int:
        """Number of floating-point operations per image in a step."""
        size = self.run.data.image_size
        return shapes.step_flops(
            self.models.student, [(self.models.teachers["teacher"], size)], self.distiller().vitkd, image_size=size
        )

    def distiller(self) -> Distiller:
        """Build a new distiller, whose initial weights are always the same."""
        torch.manual_seed(0)
        return Distiller(deepcopy(self.models.student), self.run.losses, self.models.pairs)


@dataclass(frozen=True)
class MicroBatch:
    """Micro-batch of images and targets, as it is after Mixup or CutMix, and the weights of the loss terms."""

    images_BCHW: Tensor
    """fp32, with values from 0 to 255."""
    targets_BK: Tensor
    weights: dict[str, Tensor]


def build_pair(name: str, *, ds_config: str, debug: bool) -> Pair:
    """Build a recipe's models without drop path and moving average. With `debug`, the models have toy size."""
    run = build_run(RECIPES[name], debug=debug)
    student, teacher = replace(run.student, drop_path_rate=0.0), replace(run.teachers["teacher"], checkpoint="random")
    if debug:
        student_args, teacher_args = ({**args, "patch_size": 8} for args in TOY[name])
        student, teacher = replace(student, model_args=student_args), replace(teacher, model_args=teacher_args)
        run = replace(run, data=replace(run.data, image_size=32))
    run = replace(
        run,
        student=student,
        teachers={"teacher": teacher},
        optim=replace(run.optim, ema_decay=0.0),
        ds_config=ds_config,
    )
    return Pair(name, run, build_models(run))


def make_micro_batch(pair: Pair, images: int, device: torch.device) -> MicroBatch:
    """Draw random images and soft labels. The images are channels-last, as those of the loader."""
    generator = torch.Generator().manual_seed(1 + ranks.rank())
    size, classes = pair.run.data.image_size, pair.run.data.num_classes
    images_BCHW = torch.randint(0, 256, (images, 3, size, size), generator=generator).float()
    images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
    targets_BK = torch.rand(images, classes, generator=generator).softmax(1)
    terms = pair.run.losses.active().items()
    weights = {name: torch.tensor(float(term.weight), device=device) for name, term in terms}
    return MicroBatch(images_BCHW.to(device), targets_BK.to(device), weights)


class PlainLoop:
    """Loop without DeepSpeed, for one rank: fp32 weights, bf16 autocast, torch's gradient clipping and AdamW.

    The eager loop computes what the official code does, but without mmcls and with a newer torch than 1.10: the teacher
    is in fp32 under autocast, and AdamW has torch's defaults. The compiled loop is what a user would write by hand: all
    models are compiled, the teacher is in bf16, and AdamW is fused.
    """

    def __init__(self, pair: Pair, device: torch.device, *, compile: bool) -> None:
        self.distiller = pair.distiller().to(device)
        self.teacher = deepcopy(pair.models.teachers["teacher"]).to(device)
        self.normalizations = normalization_of(pair.models.student), normalization_of(pair.models.teachers["teacher"])
        self.blocks, optim = pair.run.losses.needs.tapped("teacher"), pair.run.optim
        self.max_norm = optim.clip_grad_norm
        self.autocast = torch.autocast(device.type, dtype=torch.bfloat16)
        self.tap, self.call = tap_features, self.distiller
        self.teacher_dtype = torch.bfloat16 if compile else torch.float32
        if compile:
            self.teacher = self.teacher.bfloat16()
            self.tap, self.call = torch.compile(tap_features), torch.compile(self.distiller)
        fused = True if compile and device.type == "cuda" else None
        decayed, undecayed = self.distiller.split_by_decay()
        groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=optim.lr, fused=fused)

    @torch.no_grad()
    def teach(self, batch: MicroBatch) -> Features:
        images_BCHW = self.normalizations[1].apply(batch.images_BCHW, self.teacher_dtype)
        with self.autocast if self.teacher_dtype == torch.float32 else nullcontext():
            return self.tap(self.teacher, images_BCHW, self.blocks)

    def forward(self, batch: MicroBatch, features: Features) -> Tensor:
        """Return the total loss."""
        images_BCHW = self.normalizations[0].apply(batch.images_BCHW, torch.float32)
        with self.autocast:
            return self.call(images_BCHW, batch.targets_BK, {"teacher": features}, batch.weights)["total"]

    def backward(self, total: Tensor) -> None:
        total.backward()

    def update(self) -> None:
        """Clip the gradients and update the weights."""
        torch.nn.utils.clip_grad_norm_(self.distiller.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Engines:
    """Loop with this project's engines, `StudentEngine` and `Teacher`. The methods are those of PlainLoop."""

    def __init__(
        self, pair: Pair, device: torch.device, micro_batch: int, placement: str, *, compile: str, fp8: bool = False
    ) -> None:  # fmt: skip
        run = replace(pair.run, global_batch_size=micro_batch * ranks.world_size(), compile=compile)
        run = replace(run, teachers={"teacher": replace(run.teachers["teacher"], placement=placement, fp8=fp8)})
        config = student_ds_config(run, micro_batch_size=micro_batch, accumulation_steps=1)
        self.engine = StudentEngine(pair.distiller(), run, config)
        self.normalization = normalization_of(pair.models.student)
        self.teacher = Teacher(
            deepcopy(pair.models.teachers["teacher"]), run, device=device, micro_batch_size=micro_batch
        )

    def teach(self, batch: MicroBatch) -> Features:
        return self.teacher(batch.images_BCHW)

    def forward(self, batch: MicroBatch, features: Features) -> Tensor:
        images_BCHW = self.normalization.apply(batch.images_BCHW, self.engine.dtype)
        return self.engine(images_BCHW, batch.targets_BK, {"teacher": features}, batch.weights)["total"]

    def backward(self, total: Tensor) -> None:
        self.engine.backward(total)

    def update(self) -> None:
        self.outcome = self.engine.step()


Variant = PlainLoop | Engines


def build_variant(name: str, pair: Pair, device: torch.device, micro_batch: int) -> Variant:
    """Build the loop of a name in VARIANTS or CHOICES."""
    if name in ("eager", "compiled"):
        return PlainLoop(pair, device, compile=name == "compiled")
    placement = "replica" if name in CHOICES else name
    return Engines(pair, device, micro_batch, placement, **{"compile": "default"} | CHOICES.get(name, {}))


def generate_no_code() -> None:
    """In this process, let torch.compile trace and check graphs but generate no code; for --debug."""
    dynamo.register_backend(run_static, name="static")
    dynamo.config.debug_backend_override = ">=0:static"


def run_static(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Backend of torch.compile: return a function that runs the traced operations one by one.

    Raises:
        ValueError: The graph has dynamic sizes. Dynamo traces such a graph when it gets inputs of a second size.
    """
    sizes = [size for value in inputs for size in (value.shape if isinstance(value, Tensor) else (value,))]
    if variable := [size for size in sizes if isinstance(size, torch.SymInt)]:
        raise ValueError(
            f"a graph has dynamic sizes: {', '.join(map(str, variable))}. Time each micro-batch in its own process: "
            "kernels for dynamic sizes are slower than those of training."
        )
    return graph.forward
