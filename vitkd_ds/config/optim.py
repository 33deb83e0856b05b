"""Settings of the optimizer and its learning rate."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval
from pydantic.dataclasses import dataclass

from vitkd_ds.config.part import Number, Part, Rule

FRACTIONS = Rule(lambda pair: all(0 <= value < 1 for value in pair), "two numbers in [0, 1) separated by a comma")


@dataclass(frozen=True)
class OptimConfig(Part, place="optim"):
    """Optimizer, learning rate (warm-up, then cosine decay), gradient clipping, moving average of the weights (EMA)."""

    name: Literal["adamw", "muon"] = "adamw"
    """Optimizer. adamw: AdamW for all parameters. muon: Muon for the weight matrices in the student's blocks, and AdamW
    for all other parameters."""
    qkv: Literal["whole", "thirds"] = "whole"
    """How Muon treats a fused qkv weight. whole: as one matrix. thirds: as three matrices (queries, keys, values)."""
    lr: Annotated[Number, Gt(0)] = 1e-3
    """Peak learning rate for a batch of lr_batch_size images. The run uses lr * global_batch_size / lr_batch_size."""
    lr_batch_size: Annotated[int, Gt(0)] = 1024
    """Batch size, in images per optimizer update, for which lr is given."""
    min_lr: Annotated[Number, Ge(0)] = 1e-5
    """Learning rate at the last step; not scaled by the batch size."""
    warmup_epochs: Annotated[Number, Ge(0)] = 20
    """Epochs of linear warm-up to the peak learning rate; 0 starts at the peak."""
    warmup_fraction: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Length of the warm-up as a fraction of the run. A value above 0 needs warmup_epochs=0; 0 uses warmup_epochs."""
    warmup_start_factor: Annotated[Number, Interval(gt=0, le=1)] = 1e-3
    """Learning rate of the first step, divided by the peak learning rate."""
    weight_decay: Annotated[Number, Ge(0)] = 0.05
    """Decoupled weight decay: each update first multiplies a weight by 1 - learning rate * weight_decay; 0 is off.
    Norms, biases, LayerScale, position embeddings, and class, distillation and register tokens are exempt."""
    betas: Annotated[tuple[Number, Number], FRACTIONS] = (0.9, 0.999)
    """Decay rates of AdamW's moving averages of the gradient and of its square."""
    eps: Annotated[Number, Gt(0)] = 1e-8
    """Added to AdamW's denominator to avoid division by 0."""
    clip_grad_norm: Annotated[Number, Ge(0)] = 5.0
    """Maximum norm of the gradient of all parameters together. A larger gradient is scaled down to it; 0 is off."""
    ema_decay: Annotated[Number, Interval(ge=0, lt=1)] = 0.0
    """Decay rate per step of the fp32 moving average of the weights, such as 0.99996; 0 is off. If it is on, the
    average is evaluated and exported instead of the weights."""
