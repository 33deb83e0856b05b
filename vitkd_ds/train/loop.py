"""Training loop: from a validated run to a trained, exported student and its summary.

Every rank makes the same calls in the same order, because teachers, engine, checks and evaluations contain collectives.
Rank-0 work is in `ranks.on_main` or inside called functions.
"""

import json
import logging
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

import torch
from torch import Tensor

from vitkd_ds.checkpoint.folder import LENGTH, check_settings, is_finished
from vitkd_ds.checkpoint.load import Start, TrainState, find, newest_whole, restore
from vitkd_ds.checkpoint.lock import RunLock
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.config.run_folder import SUMMARY
from vitkd_ds.engine import ranks
from vitkd_ds.engine.ds_config import find_ds_config
from vitkd_ds.engine.processes import (
    check_gpu_is_used,
    device_name,
    make_deterministic,
    peak_memory_gib,
    set_rank_variables,
    start_processes,
    synchronised_time,
)
from vitkd_ds.models.cost import PEAK_TFLOPS, step_gflops
from vitkd_ds.models.hub import check_model_name
from vitkd_ds.train import signals, watchdog
from vitkd_ds.train.calibrate import calibrate
from vitkd_ds.train.health import Health
from vitkd_ds.train.identity import check_identity, identity_of
from vitkd_ds.train.introduction import introduce
from vitkd_ds.train.log import Meter, MetricsLog
from vitkd_ds.train.nonfinite import report_nonfinite
from vitkd_ds.train.parts import Parts, build_parts
from vitkd_ds.train.profile import profiled
from vitkd_ds.train.rehearsal import compile_sizes
from vitkd_ds.train.results import evaluate_student, finish, skipped_images
from vitkd_ds.train.schedule import loss_weights_at
from vitkd_ds.train.step import Update, settle, train_step
from vitkd_ds.train.teacher_check import check_fp8, check_teacher

logger = logging.getLogger(__name__)


def train(run: Run) -> dict[str, Any] | None:
    """Train, evaluate and export in a run folder that this job locks. Collective: all ranks must call this function.

    Args:
        run: settings as returned by `vitkd_ds.commands.parse.checked`.

    Returns:
        The content of summary.json, on every rank; None if a signal stopped the run. Rerun the same command to resume.

    Raises:
        ValueError: a setting, file or model is invalid, or the folder is in use. It is raised before any update.
        vitkd_ds.train.step.NonFiniteError: a loss or gradient is inf or nan.
        vitkd_ds.checkpoint.save.SaveError: checkpoints cannot be saved.
    """
    # Local checks come first, before ranks wait for each other.
    find_ds_config(run.ds_config)
    check_model_name(run.student.model, role="student")
    check_gpu_is_used()
    set_rank_variables()
    watchdog.watch(limit_s=60 * run.timeout_minutes)
    if run.deterministic:
        make_deterministic()
    device = start_processes(run.timeout_minutes)
    # Resolve symlinks once, so that changing one later cannot redirect this run into another folder.
    given = run.workdir
    workdir = Path(run.workdir).resolve()
    run = replace(run, workdir=str(workdir))
    # Look before taking the lock, so that a rejected run changes nothing. Look again while holding it, because another
    # job may have run in between.
    is_done, _ = ranks.on_main(lambda: _look(run))
    if not is_done:
        lock = RunLock(workdir)
        ranks.on_main(lock.acquire)
        watchdog.leave_with(lock.release)
        try:
            token = ranks.from_main(lock.me["token"])
            ranks.together(lambda: lock.check_is_seen(token))
            is_done, start = ranks.on_main(lambda: _look(run))
            if _is_stopped(device):
                return None
            if not is_done:
                watchdog.enter("load")
                return train_from(newest_whole(start), run, device, lock, given)
        finally:
            lock.release()
    again = "give another --workdir to train again, or more --epochs with --extend"
    logger.info("%s is already finished: %s", given, again)
    return json.loads((workdir / SUMMARY).read_text())


def _is_stopped(device: torch.device) -> bool:
    """Return whether any rank received a signal before the first step. Collective."""
    if ranks.all_true(not signals.received(), device):
        return False
    logger.info("stopped by a signal before the first step; nothing was changed")
    return True


def _look(run: Run) -> tuple[bool, Start | None]:
    """Return whether the run is finished, and the checkpoint to start from.

    The checkpoint is None if the run is finished or starts at step 0.

    Raises:
        ValueError: the folder's settings do not allow this run.
    """
    if is_finished(run):
        return True, None
    start = find(run.resume, Path(run.workdir))
    check_settings(run, start.config if start else None)
    return False, start


def train_from(start: Start | None, run: Run, device: torch.device, lock: RunLock, given: str) -> dict[str, Any] | None:
    """Train until the schedule ends or a signal arrives, starting from a checkpoint if one is given. Collective.

    Args:
        given: run folder as spelled in the command, stored in config.json.

    Returns:
        See `train`.
    """
    workdir = Path(run.workdir)
    watchdog.enter("build")
    parts = build_parts(run, device)
    schedule = parts.schedule
    if _is_stopped(device):
        return None
    watchdog.enter("load")
    if run.extend and start and schedule.total_steps < start.num_steps:
        raise ValueError(
            f"--extend needs more than the {start.num_steps} steps of {start.path}, got {schedule.total_steps}. "
            "Raise --epochs or --max_steps."
        )
    identity = identity_of(parts)
    ranks.on_main(lambda: check_identity(start, identity, free=LENGTH if run.extend else ()))
    fingerprint = parts.train_loader.fingerprint
    state = restore(parts.engine, start, steps_per_epoch=schedule.steps_per_epoch, data=fingerprint)
    if parts.phases and run.is_compiled:
        compile_sizes(parts)
    if start is None:
        watchdog.enter("teacher check")
        check_teacher(parts)
        check_fp8(parts)
        calibrate(parts)
    # From here on, the run writes to its folder. If a signal arrives, the run saves after its next step.
    saver = Saver(workdir, run.checkpoint, parts.student_description(), lock.check, identity)
    if start and start.is_own:
        saver.saved_step = state.step
    saver.begin(start)
    costs = ranks.on_main(lambda: introduce(parts, state.step, workdir=given))
    settings = as_dict(run) | {"workdir": given}
    log = ranks.together(
        lambda: MetricsLog(workdir, schedule.total_steps, state.step, state.result_step, run.trackers, settings)
    )
    logger.info(
        f"{run.recipe}: step {state.step} of {schedule.total_steps}, {ranks.world_size()} ranks on {device.type}, "
        f"{schedule.accumulation_steps} micro-batches per step and rank{f', from {start.path}' if start else ''}"
    )
    peak = None if parts.phases else PEAK_TFLOPS.get(device_name())  # the costs are for images of full size
    meter = Meter(run.global_batch_size, synchronised_time, step_gflops(costs), peak)
    meter.continue_from(state.timed_s, state.timed_steps)
    session = Session(parts, log, meter, state, saver)
    with closing(log), profiled(run.profile, workdir) as profiler:
        is_whole = session.after_step() and session.train_steps(profiler)  # first finish work that a signal interrupted
        summary = finish(parts, state, meter.images_per_s, check=lock.check) if is_whole else None
        stopped = f"stopped and saved at step {state.step}; rerun the same command to resume"
        logger.info("%s: %s", run.recipe, "done" if summary else stopped)
    return summary


@dataclass(frozen=True)
class Session:
    """Training in one launch, from a checkpoint or step 0 until the schedule ends or a signal arrives.

    All methods are collective. Methods that return a bool return False if a signal stopped them, and True otherwise.
    """

    parts: Parts
    log: MetricsLog
    meter: Meter
    state: TrainState
    saver: Saver

    def train_steps(self, profiler: Any) -> bool:
        """Train to the end of the schedule, with logs, evaluations and checkpoints when due."""
        with closing(training_micro_batches(self.parts, self.state.step)) as micro_batches:
            if not self._train_steps(micro_batches, profiler):
                return False
        # If --max_steps is below the checkpoint's step, no step ran and the last evaluation is still missing.
        return self.state.result_step == self.state.step or evaluate_student(self.parts, self.log, self.state)

    def _train_steps(self, micro_batches: Iterator[tuple[Tensor, Tensor]], profiler: Any) -> bool:
        run = self.parts.run
        schedule = self.parts.schedule
        state = self.state
        health = Health(run, total_steps=schedule.total_steps)
        queued: deque[Update] = deque()
        is_asked_to_stop = False
        while state.step < schedule.total_steps:
            self.meter.start()
            queued.append(train_step(self.parts, micro_batches, state.step))
            self.meter.add(queued[-1].terms, waited_s=queued[-1].waited_s)
            if profiler:
                profiler.step()
            state.step += 1
            is_logged = state.step % run.log_every_steps == 0 or state.step == schedule.total_steps
            must_know = is_logged or schedule.is_save_step(state.step) or schedule.is_eval_step(state.step)
            # Read an update's outcome only after queueing the next one, so that the device never waits for this loop.
            while len(queued) > (0 if must_know or is_asked_to_stop else 1):
                update = queued.popleft()
                if not update.outcome.is_applied:
                    report_nonfinite(self.parts, update)
                is_asked_to_stop |= settle(update, run)
                health.observe_step(update.step + 1, update.outcome.grad_norm)
            if is_logged:
                values = self.meter.read() | step_values(self.parts, update)
                self.log.log(state.step, values)
                health.observe_terms(state.step, values, loss_weights_at(state.step - 1, run, schedule.total_steps))
            if is_asked_to_stop:
                self.save(is_last_chance=True)
            if is_asked_to_stop or not self.after_step():
                return False
        return True

    def after_step(self) -> bool:
        """Save a checkpoint and evaluate, each only if it is due after this step and has not been done yet.

        The checkpoint is saved first, so that a signal during the evaluation loses no step. The evaluation's result is
        added to the checkpoint afterwards.
        """
        step = self.state.step
        schedule = self.parts.schedule
        must_evaluate = step > 0 and schedule.is_eval_step(step) and self.state.result_step < step
        must_save = step > 0 and schedule.is_save_step(step)
        if (must_save or must_evaluate) and self.saver.saved_step != step:
            self.save()
        if must_evaluate:
            self.meter.pause()
            if not evaluate_student(self.parts, self.log, self.state):
                return False
            self.saver.note(self.state)
        return True

    def save(self, *, is_last_chance: bool = False) -> None:
        """Save a checkpoint with the current training state."""
        self.meter.pause()
        watchdog.enter("save", self.state.step)
        self.state.timed_s = self.meter.timed_s
        self.state.timed_steps = self.meter.timed_steps
        self.saver.save(self.parts.engine, self.state, is_last_chance=is_last_chance)


def training_micro_batches(parts: Parts, start_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield micro-batches forever, epoch after epoch, starting after `start_step` updates."""
    epoch, step_in_epoch = divmod(start_step, parts.schedule.steps_per_epoch)
    while True:
        with closing(parts.train_loader.epoch(epoch, start_step=step_in_epoch)) as micro_batches:
            yield from micro_batches
        epoch, step_in_epoch = epoch + 1, 0


def step_values(parts: Parts, update: Update) -> dict[str, float]:
    """Return the values to log besides loss terms and speed. Collective.

    The gradient norm is the norm before clipping.
    """
    steps_done = update.step + 1
    values = {
        "epoch": steps_done / parts.schedule.steps_per_epoch,
        "lr": update.lr,
        "grad_norm": update.outcome.grad_norm,
        "memory_gib": peak_memory_gib(),
    }
    return values | skipped_images("images_skipped", parts, parts.train_loader)
