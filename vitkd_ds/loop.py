"""The corridor: a validated run in, a trained and exported student and its summary out.

Every rank runs every line here; what only rank 0 does happens inside the functions that are called. The teacher's
forward, the student's engine, the checks and the evaluations contain collectives: each rank must reach each of them
the same number of times.
"""

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor

from vitkd_ds import checkpoint, dist, signals, watchdog
from vitkd_ds.checkpoint import Start, TrainState
from vitkd_ds.config import Run, check_run
from vitkd_ds.data.mixing import mix_step
from vitkd_ds.ds_config import find_ds_config
from vitkd_ds.engine import peak_memory_gib, start_processes, synchronised_time
from vitkd_ds.evaluate import evaluate
from vitkd_ds.job import Job, build_job
from vitkd_ds.metrics import Meter, MetricsLog, write_json
from vitkd_ds.models import check_model_name
from vitkd_ds.run_folder import describe_run, is_finished, summary_of
from vitkd_ds.run_lock import RunLock
from vitkd_ds.saver import Saver
from vitkd_ds.schedule import loss_weight_at, lr_at
from vitkd_ds.shards import convert


class NonFiniteError(RuntimeError):
    """A loss or gradient is inf or nan; raised on all ranks, before the weights change."""


def train(run: Run) -> dict[str, Any] | None:
    """Train, evaluate, export, in a run folder that is this job's alone. All ranks must call it.

    Returns:
        The summary that is also written to summary.json, on every rank; None if a signal stopped the run before its
        end: the same command goes on from there.

    Raises:
        ValueError: a configuration, file or model that cannot be, or a folder in use; before any update.
        NonFiniteError: see there.
        vitkd_ds.saver.SaveError: see there.
    """
    check_run(run)
    find_ds_config(run.ds_config)
    check_model_name(run.student.model, role="student")
    if is_finished(run):
        return summary_of(run)
    checkpoint.check_same_run(run, checkpoint.find(run.resume, Path(run.workdir)))
    dist.set_rank_variables()
    watchdog.watch(limit_s=60 * run.timeout_minutes)  # before the ranks wait for each other
    device = start_processes(run.timeout_minutes)
    if must_stop(device):
        return None
    lock = RunLock(Path(run.workdir))
    checkpoint.on_main(lock.acquire)
    try:
        if dist.from_main(is_finished(run)):  # by the job that had the lock
            return summary_of(run)
        watchdog.enter("load")
        start = checkpoint.newest_whole(dist.from_main(checkpoint.find(run.resume, Path(run.workdir))))
        return train_from(start, run, device, lock)
    finally:
        lock.release()


def train_from(start: Start | None, run: Run, device: torch.device, lock: RunLock) -> dict[str, Any] | None:
    """Train from a whole checkpoint, or anew, to the end or to a signal. Collective; see `train`."""
    workdir = Path(run.workdir)
    watchdog.enter("build")
    job = build_job(run, device, start.manifest["layout"] if start else None)
    plan = job.plan
    watchdog.enter("load")
    state = checkpoint.restore(
        job.engine,
        start,
        workdir=workdir,
        steps_per_epoch=plan.steps_per_epoch,
        data=job.train_loader.fingerprint,
        convert=convert,
    )
    if must_stop(device):
        return None
    saved_step = state.step if start and start.is_own else -1
    saver = Saver(workdir, run.checkpoint, job.student_description(), check=lock.check, saved_step=saved_step)
    checkpoint.on_main(lambda: describe_run(job, workdir, state.step))
    log = dist.together(lambda: MetricsLog(workdir, total_steps=plan.total_steps, resumed_step=state.step), device)
    log.say(
        f"{run.recipe}: step {state.step} of {plan.total_steps}, {dist.world_size()} ranks on {job.device.type}, "
        f"{plan.accumulation_steps} micro-batches per step and rank"
    )
    speed = {"timed_s": state.timed_s, "timed_steps": state.timed_steps}
    meter = Meter(run.global_batch_size, clock=synchronised_time, **speed)
    with closing(log), closing(training_micro_batches(job, state.step)) as micro_batches:
        after_step(job, log, meter, state, saver)  # what was due when a signal came
        while state.step < plan.total_steps:
            meter.start()
            terms, is_asked_to_stop = train_step(job, micro_batches, state.step)
            meter.add(terms)
            state.step += 1
            if state.step % run.log_every_steps == 0 or state.step == plan.total_steps:
                log.log(state.step, meter.read() | step_values(job, state.step))
            if is_asked_to_stop and state.step < plan.total_steps:
                save(job, meter, state, saver, is_last_chance=True)
                log.say(f"{run.recipe}: stopped and saved at step {state.step}; the same command goes on")
                return None
            after_step(job, log, meter, state, saver)
        if state.result_step != state.step:  # --max_steps was below the step of the checkpoint
            evaluate_student(job, log, state)
        summary = finish(job, state, workdir, meter.images_per_s)
        log.say(f"{run.recipe}: done, {json.dumps(summary)}")
    return summary


def must_stop(device: torch.device) -> bool:
    """Whether any rank was asked to stop during the start, when there is nothing to save. Collective."""
    if dist.all_true(not signals.received(), device):
        return False
    if dist.rank() == 0:
        print("stopped by a signal before the first step: nothing changed", file=sys.stderr, flush=True)
    return True


def after_step(job: Job, log: MetricsLog, meter: Meter, state: TrainState, saver: Saver) -> None:
    """Evaluate and save if that is due and not done. Collective."""
    if state.step and job.plan.is_eval_step(state.step) and state.result_step < state.step:
        meter.pause()
        evaluate_student(job, log, state)
    is_due = job.plan.is_save_step(state.step) or state.best_step == state.step
    if state.step and is_due and (saver.saved_step != state.step or state.best_step == state.step):
        save(job, meter, state, saver)


def save(job: Job, meter: Meter, state: TrainState, saver: Saver, *, is_last_chance: bool = False) -> None:
    """Save a checkpoint. Collective."""
    meter.pause()
    watchdog.enter("save", state.step)
    state.timed_s, state.timed_steps = meter.timed_s, meter.timed_steps
    saver.save(job.engine, state, is_last_chance=is_last_chance)


def training_micro_batches(job: Job, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Micro-batches from the first image after `start_step` updates on, epoch after epoch."""
    epoch, step_in_epoch = divmod(start_step, job.plan.steps_per_epoch)
    while True:
        with closing(job.train_loader.epoch(epoch, start_step=step_in_epoch)) as micro_batches:
            yield from micro_batches
        epoch, step_in_epoch = epoch + 1, 0


def train_step(job: Job, micro_batches: Iterator[tuple[Tensor, Tensor]], step: int) -> tuple[dict[str, Tensor], bool]:
    """One optimizer update. Collective.

    Args:
        micro_batches: yields uint8 images [B, C, H, W] and labels [B].
        step: updates done before this one.

    Returns:
        The terms of this rank, mean over its micro-batches: detached fp32 scalars. And whether any rank was asked to
        stop, the same on all.

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
        watchdog.enter("data", step)
        place = micro * dist.world_size() + dist.rank()
        images_BCHW, targets_BK = mix_step(run, *next(micro_batches), step=step, place=place)
        watchdog.enter("teacher")
        features = job.teacher(images_BCHW) if job.teacher else None
        watchdog.enter("forward")
        terms = engine(job.normalization.apply(images_BCHW, engine.dtype), targets_BK, features, weights)
        watchdog.enter("backward")
        engine.backward(terms["total"])
        for name, value in terms.items():
            means[name] = means.get(name, 0) + value.detach() / job.plan.accumulation_steps
        if micro + 1 == job.plan.accumulation_steps:
            watchdog.enter("agreement")
            is_asked_to_stop = check_finite(job, means, step)
            watchdog.enter("update")
        is_updated = engine.step()
    if not is_updated:
        raise NonFiniteError(f"{_where(job, step)}: gradients must be finite, found inf or nan with finite losses")
    return means, is_asked_to_stop


def check_finite(job: Job, terms: dict[str, Tensor], step: int) -> bool:
    """Stop on all ranks, before the update, when a term is inf or nan on any of them. Collective.

    Returns:
        Whether a signal asked any rank to stop. It is agreed on here, where all ranks wait for the gradient's norm
        anyway: two more numbers in the same all-reduce.
    """
    is_bad = ~torch.isfinite(torch.stack(list(terms.values()))).all()
    is_asked = torch.full((), float(bool(signals.received())), device=job.device)
    num_bad, num_asked = job.engine.clip([is_bad.float(), is_asked])
    if num_bad:
        found = ", ".join(f"{name} {value.item():g}" for name, value in terms.items())
        raise NonFiniteError(f"{_where(job, step)}: losses must be finite on every rank, found {found} on this one")
    return num_asked > 0


def _where(job: Job, step: int) -> str:
    good = checkpoint.pointer(Path(job.run.workdir) / "checkpoints", "latest") or "none yet"
    lr = lr_at(step, job.plan, job.run.optim, job.run.global_batch_size)
    return f"stopped before update {step + 1}, rank {dist.rank()}, lr {lr:g}, last good checkpoint {good}"


def step_values(job: Job, steps_done: int) -> dict[str, float]:
    """What else the log holds: epoch, learning rate, gradient norm before clipping, peak memory, and how many images
    all ranks skipped since the start, where they may. Collective."""
    values = {
        "epoch": steps_done / job.plan.steps_per_epoch,
        "lr": lr_at(steps_done - 1, job.plan, job.run.optim, job.run.global_batch_size),
        "grad_norm": job.engine.grad_norm(),
        "memory_gib": peak_memory_gib(),
    }
    if job.run.data.on_bad == "skip":
        num_skipped = torch.tensor(job.train_loader.num_skipped, device=job.device)
        values["images_skipped"] = dist.sum_over_ranks(num_skipped).item()
    return values


def evaluate_student(job: Job, log: MetricsLog, state: TrainState) -> None:
    """Evaluate the weights that would be exported now; log and note the result, and the best. Collective."""
    watchdog.enter("evaluation", state.step)
    job.export_model.load_state_dict(job.engine.student_weights())
    result = evaluate(job.export_model, job.val_loader, normalization=job.normalization, teacher=job.teacher)
    log.log(state.step, {f"val_{name}": value for name, value in result.items()})
    state.result, state.result_step = result, state.step
    if result["top1"] > state.best_top1:
        state.best_top1, state.best_step = result["top1"], state.step


def finish(job: Job, state: TrainState, workdir: Path, images_per_s: float | None) -> dict[str, Any]:
    """Export the student, write the summary, mark the folder as done. Collective."""
    watchdog.enter("export", state.step)
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
