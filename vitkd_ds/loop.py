"""The corridor: a validated run in, a trained and exported student and its summary out.

Every rank runs every line here; what only rank 0 does happens inside the functions that are called. The teacher's
forward, the student's engine, the checks and the evaluations contain collectives: each rank must reach each of them
the same number of times.
"""

import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor

from vitkd_ds import checkpoint, dist
from vitkd_ds.checkpoint import TrainState
from vitkd_ds.config import Run, as_dict, check_run
from vitkd_ds.data.mixing import mix
from vitkd_ds.data.order import keyed_rng
from vitkd_ds.ds_config import find_ds_config
from vitkd_ds.engine import peak_memory_gib, start_processes, synchronised_time
from vitkd_ds.evaluate import evaluate
from vitkd_ds.job import Job, build_job
from vitkd_ds.metrics import Meter, MetricsLog, git_commit, versions, write_json
from vitkd_ds.models import check_model_name
from vitkd_ds.schedule import loss_weight_at, lr_at


class NonFiniteError(RuntimeError):
    """A loss or gradient is inf or nan; raised on all ranks, before the weights change."""


def train(run: Run) -> dict[str, Any]:
    """Train, evaluate, export. All ranks must call it.

    Returns:
        The summary that is also written to summary.json, on every rank.

    Raises:
        ValueError: a configuration, file or model that cannot be; before any update.
        NonFiniteError: see there.
    """
    check_run(run)
    find_ds_config(run.ds_config)
    check_model_name(run.student.model, role="student")
    workdir = Path(run.workdir)
    if run.resume != "none" and (workdir / "done").exists():
        print(f"{workdir} is finished and left alone: give another --workdir to train again", file=sys.stderr)
        return json.loads((workdir / "summary.json").read_text())
    start = checkpoint.find(run.resume, workdir)
    checkpoint.check_same_run(run, start)
    device = start_processes()
    start = dist.from_main(start)
    job = build_job(run, device)
    plan = job.plan
    state = checkpoint.restore(job.engine, start, steps_per_epoch=plan.steps_per_epoch, device=device)
    checkpoint.on_main(lambda: describe_run(job, workdir, state.step))
    log = dist.together(lambda: MetricsLog(workdir, total_steps=plan.total_steps, resumed_step=state.step), device)
    log.say(
        f"{run.recipe}: step {state.step} of {plan.total_steps}, {dist.world_size()} ranks on {job.device.type}, "
        f"{plan.accumulation_steps} micro-batches per step and rank"
    )
    speed = {"timed_s": state.timed_s, "timed_steps": state.timed_steps}
    meter = Meter(run.global_batch_size, clock=synchronised_time, **speed)
    with closing(log), closing(training_micro_batches(job, state.step)) as micro_batches:
        while state.step < plan.total_steps:
            meter.start()
            meter.add(train_step(job, micro_batches, state.step))
            state.step += 1
            if state.step % run.log_every_steps == 0 or state.step == plan.total_steps:
                log.log(state.step, meter.read() | step_values(job, state.step))
            if plan.is_eval_step(state.step):
                meter.pause()
                evaluate_student(job, log, state)
            if plan.is_save_step(state.step) or state.best_step == state.step:
                meter.pause()
                state.timed_s, state.timed_steps = meter.timed_s, meter.timed_steps
                checkpoint.save(job.engine, state, workdir, run.checkpoint.keep_last, job.student_description())
        if state.result_step != state.step:  # --max_steps was below the step of the checkpoint
            evaluate_student(job, log, state)
        summary = finish(job, state, workdir, meter.images_per_s)
        log.say(f"{run.recipe}: done, {json.dumps(summary)}")
    return summary


def training_micro_batches(job: Job, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches from the first image after `start_step` updates on, epoch after epoch."""
    epoch, step_in_epoch = divmod(start_step, job.plan.steps_per_epoch)
    while True:
        with closing(job.train_loader.epoch(epoch, start_step=step_in_epoch)) as micro_batches:
            yield from micro_batches
        epoch, step_in_epoch = epoch + 1, 0


def train_step(job: Job, micro_batches: Iterator[tuple[Tensor, Tensor]], step: int) -> dict[str, Tensor]:
    """One optimizer update. Collective.

    Args:
        micro_batches: yields uint8 images [B, C, H, W] and labels [B].
        step: updates done before this one.

    Returns:
        The terms of this rank, mean over its micro-batches: detached fp32 scalars.

    Raises:
        NonFiniteError: see there.
    """
    run, engine = job.run, job.engine
    engine.set_lr(lr_at(step, job.plan, run.optim, run.global_batch_size))
    weights = {
        # full, not tensor: a copy from the host would wait for the device.
        name: torch.full((), loss_weight_at(step, term.weight, term.schedule, job.plan.total_steps), device=job.device)
        for name, term in run.losses.active().items()
    }
    means: dict[str, Tensor] = {}
    for micro in range(job.plan.accumulation_steps):
        images_BCHW, targets_BK = mixed(job, *next(micro_batches), step=step, micro=micro)
        features = job.teacher(images_BCHW) if job.teacher else None
        terms = engine(job.normalization.apply(images_BCHW, engine.dtype), targets_BK, features, weights)
        engine.backward(terms["total"])
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / job.plan.accumulation_steps
        if micro + 1 == job.plan.accumulation_steps:
            check_finite(job, means, step)
        is_updated = engine.step()
    if not is_updated:
        raise NonFiniteError(f"{_where(job, step)}: gradients must be finite, found inf or nan with finite losses")
    return means


def mixed(job: Job, images_BCHW: Tensor, labels_B: Tensor, *, step: int, micro: int) -> tuple[Tensor, Tensor]:
    """The micro-batch that both models see: fp32 images 0..255 and soft labels.

    Every draw of a micro-batch is keyed by seed, step, micro-batch and rank, so there is no generator to save: the
    mixing here, and ViTKD's mask and drop path through torch's generator, which is seeded here.
    """
    rng = keyed_rng(job.run.seed, step, micro, dist.rank())
    torch.manual_seed(int(rng.integers(2**63)))
    return mix(
        images_BCHW,
        labels_B,
        num_classes=job.run.data.num_classes,
        mixup_alpha=job.run.augment.mixup_alpha,
        cutmix_alpha=job.run.augment.cutmix_alpha,
        label_smoothing=job.run.losses.ce.label_smoothing,
        rng=rng,
    )


def check_finite(job: Job, terms: dict[str, Tensor], step: int) -> None:
    """Stop on all ranks, before the update, when a term is inf or nan on any of them. Collective."""
    if not dist.all_true(torch.isfinite(torch.stack(list(terms.values()))).all(), job.device):
        found = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
        raise NonFiniteError(f"{_where(job, step)}: losses must be finite on every rank, found {found} on this one")


def _where(job: Job, step: int) -> str:
    good = checkpoint.pointer(Path(job.run.workdir) / "checkpoints", "latest") or "none yet"
    lr = lr_at(step, job.plan, job.run.optim, job.run.global_batch_size)
    return f"stopped before update {step + 1}, rank {dist.rank()}, lr {lr:g}, last good checkpoint {good}"


def step_values(job: Job, steps_done: int) -> dict[str, float]:
    """What else the log holds: epoch, learning rate, gradient norm before clipping, peak memory."""
    return {
        "epoch": steps_done / job.plan.steps_per_epoch,
        "lr": lr_at(steps_done - 1, job.plan, job.run.optim, job.run.global_batch_size),
        "grad_norm": job.engine.grad_norm(),
        "memory_gib": peak_memory_gib(),
    }


def evaluate_student(job: Job, log: MetricsLog, state: TrainState) -> None:
    """Evaluate the weights that would be exported now; log and note the result, and the best. Collective."""
    job.export_model.load_state_dict(job.engine.student_weights())
    result = evaluate(job.export_model, job.val_loader, normalization=job.normalization, teacher=job.teacher)
    log.log(state.step, {f"val_{name}": value for name, value in result.items()})
    state.result, state.result_step = result, state.step
    if result["top1"] > state.best_top1:
        state.best_top1, state.best_step = result["top1"], state.step


def describe_run(job: Job, workdir: Path, resumed_step: int) -> None:
    """Write config.json; a continued run has the same settings, but may have moved and been updated."""
    workdir.mkdir(parents=True, exist_ok=True)
    content = {"run": as_dict(job.run), "plan": asdict(job.plan), "resumed_step": resumed_step}
    content |= {"world_size": dist.world_size(), "device": job.device.type, "command": sys.argv}
    write_json(workdir / "config.json", content | {"git_commit": git_commit(), "versions": versions()})


def finish(job: Job, state: TrainState, workdir: Path, images_per_s: float | None) -> dict[str, Any]:
    """Export the student, write the summary, mark the folder as done. Collective."""
    summary: dict[str, Any] = {
        "student_top1": state.result["top1"],
        "student_top5": state.result["top5"],
        "teacher_top1": state.result.get("teacher_top1"),
        "agreement": state.result.get("agreement"),
        "images_per_s": images_per_s,
        "epochs": state.step / job.plan.steps_per_epoch,
        "steps": state.step,
        "world_size": dist.world_size(),
        "debug": job.run.debug,
    }
    if job.run.optim.ema_decay:
        job.export_model.load_state_dict(job.engine.student_weights(average=False))
        raw = evaluate(job.export_model, job.val_loader, normalization=job.normalization)
        summary["student_raw_top1"] = raw["top1"]
    weights = job.engine.student_weights()
    description = job.student_description() | {"step": state.step, "top1": state.result["top1"]}

    def write() -> None:
        checkpoint.write_student(workdir, weights, description)
        write_json(workdir / "summary.json", summary)
        (workdir / "done").touch()

    checkpoint.on_main(write)
    return summary
