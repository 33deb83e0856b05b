"""What a run finds out about its student: the evaluations on its way, and the summary and the export at its end.

A signal ends an evaluation: the checkpoint of that step is there already, so the next start has only it to do again.
"""

from pathlib import Path
from typing import Any

import torch

from vitkd_ds.checkpoint import load
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.manifest import sync_folder
from vitkd_ds.data.loader import Loader
from vitkd_ds.engine import ranks
from vitkd_ds.train import signals, watchdog
from vitkd_ds.train.evaluate import evaluate
from vitkd_ds.train.log import MetricsLog, write_atomically, write_json
from vitkd_ds.train.parts import Job


def skipped_images(name: str, job: Job, loader: Loader) -> dict[str, float]:
    """How many images of a loader all ranks skipped since the start, where they may; for the log. Collective."""
    if job.run.data.on_bad != "skip":
        return {}
    return {name: ranks.sum_over_ranks(torch.tensor(loader.num_skipped, device=job.device)).item()}


def evaluate_student(job: Job, log: MetricsLog, state: TrainState) -> bool:
    """Evaluate the weights that would be exported now; log and note the result, and the best. Collective.

    Returns:
        False if a signal came on any rank before the end.
    """
    watchdog.enter("evaluation", state.step)
    job.export_model.load_state_dict(job.engine.student_weights())
    result = evaluate_model(job, teacher=job.teacher)
    if result is None:
        return False
    values = {f"val_{name}": value for name, value in result.items()}
    log.log(state.step, values | skipped_images("val_images_skipped", job, job.val_loader))
    state.result, state.result_step = result, state.step
    if result["top1"] > state.best_top1:
        state.best_top1, state.best_step = result["top1"], state.step
    return True


def evaluate_model(job: Job, *, teacher: Any = None) -> dict[str, float] | None:
    """What `evaluate` says of the weights in `job.export_model`; None if a signal came. Collective."""
    return evaluate(
        job.export_model,
        job.val_loader,
        normalization=job.normalization,
        teacher=teacher,
        must_stop=lambda: not ranks.all_true(not signals.received(), job.device),
    )


def finish(job: Job, state: TrainState, workdir: Path, images_per_s: float | None) -> dict[str, Any] | None:
    """Export the student, write the summary, mark the folder as done; None if a signal came before. Collective."""
    watchdog.enter("export", state.step)
    summary: dict[str, Any] = {
        "student_top1": state.result["top1"],
        "student_top5": state.result["top5"],
        "teacher_top1": state.result.get("teacher_top1"),
        "agreement": state.result.get("agreement"),
        "images_per_s": images_per_s,
        "epochs": state.step / job.plan.steps_per_epoch,
        "steps": state.step,
        "world_size": ranks.world_size(),
        "debug": job.run.debug,
    }
    if job.run.optim.ema_decay:
        job.export_model.load_state_dict(job.engine.student_weights(average=False))
        raw = evaluate_model(job)
        if raw is None:
            return None
        summary["student_raw_top1"] = raw["top1"]
    weights = job.engine.student_weights()
    description = job.student_description() | {"step": state.step, "top1": state.result["top1"]}

    def write() -> None:
        load.write_student(workdir, weights, description)
        write_json(workdir / "summary.json", summary)
        sync_folder(workdir)  # a finished run is never started again, so all of it must be there
        write_atomically(workdir / "done", "")
        sync_folder(workdir)

    load.on_main(write)
    return summary
