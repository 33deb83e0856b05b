"""Number of steps, batch split over ranks, and per-step learning rate and loss weights.

The learning rate and loss weights are pure functions of the step, so a checkpoint need not save a schedule.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

from vitkd_ds.config.image_sizes import Phases, check_phases, phases_of
from vitkd_ds.config.run import Run, peak_lr


@dataclass(frozen=True)
class BatchSplit:
    """Split of a global batch into micro-batches and accumulation steps."""

    micro_batch_size: int
    """Images per forward on each rank."""
    accumulation_steps: int
    """Micro-batches per step on each rank."""


def split_batch(global_batch_size: int, *, world_size: int, limit: int) -> BatchSplit:
    """Split a global batch into the largest equal micro-batches of at most `limit` images.

    Raises:
        ValueError: the global batch is not divisible by the number of ranks; the message lists the possible numbers.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest:
        fitting = ", ".join(str(n) for n in range(1, global_batch_size + 1) if global_batch_size % n == 0)
        raise ValueError(
            f"global_batch_size must be a multiple of the number of ranks, got {global_batch_size} and {world_size} "
            f"ranks. Use {fitting} ranks, or change --global_batch_size."
        )
    micro = max(size for size in range(1, min(limit, share) + 1) if share % size == 0)
    return BatchSplit(micro, share // micro)


@dataclass(frozen=True)
class Schedule:
    """Length and intervals of a run in optimizer updates (steps)."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    eval_every_steps: int
    """Steps between two evaluations; if 0, the run is evaluated only after the last step."""
    save_every_steps: int
    accumulation_steps: int
    """Micro-batches per step on each rank."""

    @property
    def num_epochs(self) -> int:
        """Number of epochs; the last one may be incomplete."""
        return -(-self.total_steps // self.steps_per_epoch)

    def is_eval_step(self, steps_done: int) -> bool:
        """Return whether to evaluate after this many steps."""
        is_due = bool(self.eval_every_steps) and steps_done % self.eval_every_steps == 0
        return is_due or steps_done == self.total_steps

    def is_save_step(self, steps_done: int) -> bool:
        """Return whether to save a checkpoint after this many steps."""
        return steps_done % self.save_every_steps == 0 or steps_done == self.total_steps


def make_schedule(run: Run, *, steps_per_epoch: int, accumulation_steps: int) -> Schedule:
    """Return the schedule of a run in steps; it has at least one step."""
    whole = max(1, round(run.epochs * steps_per_epoch))
    total = min(whole, run.max_steps) if run.max_steps else whole
    warmup = min(total, round(asked_warmup(run, total, steps_per_epoch)))
    of_whole = asked_warmup(run, whole, steps_per_epoch)
    if warmup == total < whole and of_whole < whole and not run.debug:
        # max_steps would end the run during warm-up, so shorten the warm-up in proportion.
        warmup = min(total - 1, max(1, round(of_whole * total / whole)))
    return Schedule(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        # Use the decimal as written: in binary floating point, 0.07 of 600 steps exceeds 42 and would round up.
        eval_every_steps=math.ceil(Fraction(str(run.eval_every_epochs)) * steps_per_epoch),
        save_every_steps=run.checkpoint.every_steps or steps_per_epoch,
        accumulation_steps=accumulation_steps,
    )


def asked_warmup(run: Run, total_steps: int, steps_per_epoch: int) -> float:
    """Return the number of warm-up steps that the settings request for a run of this length."""
    optim = run.optim
    return optim.warmup_fraction * total_steps if optim.warmup_fraction else optim.warmup_epochs * steps_per_epoch


def check_warmup(run: Run, schedule: Schedule) -> None:
    """Raise ValueError if the warm-up takes the whole run, so that the learning rate never decays.

    A debug run is always accepted.
    """
    total = schedule.total_steps
    optim = run.optim
    if schedule.warmup_steps < total or run.debug:
        return
    key = "warmup_fraction" if optim.warmup_fraction else "warmup_epochs"
    raise ValueError(
        "the warm-up must be shorter than the run, because otherwise the learning rate never decays; got "
        f"{total} of {total} steps (optim.{key}={getattr(optim, key):g}, {schedule.steps_per_epoch} steps per "
        f"epoch, epochs={run.epochs:g}). Lower --optim.{key}, or raise --epochs."
    )


def build_phases(run: Run, schedule: Schedule) -> Phases | None:
    """Return the phases of data.image_sizes, or None without it.

    Raises:
        ValueError: a phase has no epoch. A debug run, which may be shorter than an epoch, leaves it out.
    """
    text = run.data.image_sizes
    if not text:
        return None
    phases = phases_of(text, schedule.num_epochs)
    if not run.debug:
        check_phases(phases, text)
    return phases


def lr_at(step: int, schedule: Schedule, run: Run) -> float:
    """Return the learning rate of update `step`, counted from 0.

    During warm-up, it rises linearly from a fraction of the peak to the peak. Then it follows a cosine to min_lr.

    **Differs**: the learning rate changes at every update, while cls_KD, the paper's code, changes it once per epoch.
    """
    optim = run.optim
    peak = peak_lr(run)
    if step < schedule.warmup_steps:
        start = optim.warmup_start_factor
        return peak * (start + (1 - start) * step / schedule.warmup_steps)
    progress = (step - schedule.warmup_steps) / max(1, schedule.total_steps - 1 - schedule.warmup_steps)
    return optim.min_lr + (peak - optim.min_lr) * _cosine(progress)


def loss_weights_at(step: int, run: Run, total_steps: int) -> dict[str, float]:
    """Return the weight of each active loss term at update `step`, counted from 0.

    Depending on the term's schedule, its weight is constant or decays to 0 at the last update.
    """
    progress = step / max(1, total_steps - 1)
    factors = {"constant": 1.0, "linear": 1 - progress, "cosine": _cosine(progress)}
    return {name: term.weight * factors[term.schedule] for name, term in run.losses.active().items()}


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
