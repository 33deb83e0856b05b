"""One optimizer update: queue it on the device without waiting, and read its outcome later."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.profiler import record_function

from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CHECKPOINTS, pointer
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import Outcome
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models.features import Features
from vitkd_ds.train import signals, watchdog
from vitkd_ds.train.parts import Parts
from vitkd_ds.train.schedule import loss_weights_at, lr_at

ADVICE = "Rerunning the same command would fail again. Lower --optim.lr and use another --workdir."


class NonFiniteError(RuntimeError):
    """A loss or gradient is inf or nan. The error is raised on all ranks, and the weights are unchanged.

    A restart would fail in the same way, because every random draw depends only on the seed and the step.
    """


@dataclass(frozen=True)
class Update:
    """Optimizer update that has been queued on the device."""

    step: int
    """Number of earlier updates."""
    lr: float
    terms: dict[str, Tensor]
    """This rank's loss terms, averaged over its micro-batches: detached fp32 scalars."""
    outcome: Outcome
    waited_s: float
    """Seconds that this rank's host waited for micro-batches. The device may have been busy meanwhile."""


def train_step(parts: Parts, micro_batches: Iterator[tuple[Tensor, Tensor]], step: int) -> Update:
    """Queue one optimizer update without waiting for the device. Collective.

    Args:
        micro_batches: iterator over pairs (images, labels): uint8 [B, C, H, W] and integers [B].
        step: number of earlier updates.
    """
    run, engine, num_micro = parts.run, parts.engine, parts.schedule.accumulation_steps
    lr = lr_at(step, parts.schedule, run)
    engine.set_lr(lr)
    weights = {
        name: torch.full((), weight, device=parts.device)  # torch.tensor would copy and wait for the device
        for name, weight in loss_weights_at(step, run, parts.schedule.total_steps).items()
    }
    means: dict[str, Tensor] = {}
    waited_s = 0.0
    for micro in range(num_micro):
        watchdog.enter("step", step)
        place = micro * ranks.world_size() + ranks.rank()  # key of random draws: equal for any number of ranks
        with record_function("data"):
            started = time.perf_counter()
            images_BCHW, labels_B = next(micro_batches)
            waited_s += time.perf_counter() - started
        arguments = student_arguments(parts, images_BCHW, labels_B, step=step, place=place)
        with record_function("forward"):
            terms = engine(*arguments, weights)
        with record_function("backward"):
            engine.backward(terms["total"])
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / num_micro
    watchdog.enter("step", step)
    # The all-reduce of the gradient norm also tells all ranks about a bad loss or a signal on one rank.
    is_bad = ~torch.isfinite(torch.stack(list(means.values()))).all()
    is_asked = torch.full((), float(bool(signals.received())), device=parts.device)
    with record_function("update"):
        outcome = engine.step(veto=is_bad.float(), count=is_asked)
    return Update(step, lr, means, outcome, waited_s)


def student_arguments(
    parts: Parts, images_BCHW: Tensor, labels_B: Tensor, *, step: int, place: int
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return the first three arguments of `Distiller.forward` for a micro-batch, and run the teachers. Collective.

    For `step` and `place`, see `vitkd_ds.train.mixing.mix_step`.
    """
    with record_function("data"):
        student_BCHW, teachers_BCHW, targets_BK = parts.inputs(images_BCHW, labels_B, step=step, place=place)
    features = {}
    for name, teacher in parts.teachers.items():
        teach = partial(teach_named, teacher, teachers_BCHW[name])
        features[name] = teach if parts.run.teachers[name].keep_tokens else teach()
    return student_BCHW, targets_BK, features


@torch.compiler.disable
def teach_named(teacher: Teacher, images_BCHW: Tensor, kept_BL: Tensor | None = None) -> Features:
    """Compute a teacher's features of normalised images. Profiles show this as the range "teacher"."""
    with record_function("teacher"):
        return teacher(images_BCHW, are_normalized=True, kept_BL=kept_BL)


def settle(update: Update, run: Run) -> bool:
    """Wait for an update. Return whether any rank received a stop signal; the result is equal on all ranks.

    Raises:
        NonFiniteError: this update was skipped because a loss or gradient is inf or nan. All later updates in the queue
            are skipped too.
    """
    outcome = update.outcome
    if outcome.is_applied:
        return outcome.counted > 0
    good = pointer(Path(run.workdir) / CHECKPOINTS, "latest") or "none yet"
    where = (
        f"stopped before update {update.step + 1}, rank {ranks.rank()}, lr {update.lr:g}, last good checkpoint {good}"
    )
    if not outcome.num_vetoes:
        raise NonFiniteError(f"{where}: gradients contain inf or nan although all losses are finite. {ADVICE}")
    found = ", ".join(f"{name} {value.item():g}" for name, value in update.terms.items())
    raise NonFiniteError(f"{where}: a loss is inf or nan on some rank (on this rank: {found}). {ADVICE}")
