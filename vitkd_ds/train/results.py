"""Evaluate the student during and after training; write the summary and export the weights.

A signal aborts an evaluation. The step's checkpoint is already saved, so the next launch repeats only the evaluation.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable

import torch

from vitkd_ds.checkpoint.export import write_student
from vitkd_ds.checkpoint.files import sync_folder, write_json, write_text
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.config.metrics import PREFIX, VAL_METRICS, deciding, summary_of
from vitkd_ds.config.run_folder import DONE, SUMMARY
from vitkd_ds.config.teachers import teacher_of
from vitkd_ds.data.epochs import Loader
from vitkd_ds.engine import ranks
from vitkd_ds.train import signals, watchdog
from vitkd_ds.train.evaluate import evaluate, evaluate_features, evaluate_knn
from vitkd_ds.train.log import MetricsLog
from vitkd_ds.train.parts import Parts
from vitkd_ds.train.predictions import Predictions


def evaluate_student(parts: Parts, log: MetricsLog, state: TrainState) -> bool:
    """Evaluate the weights that would be exported now, and log the result. Collective.

    `state` is updated with the result and, if it is the best so far, with the best step. Return False if any rank
    received a signal before the end of the evaluation, and True otherwise.
    """
    watchdog.enter("evaluation", state.step)
    # The last evaluation goes into the summary, so it does not use TF32.
    is_on_the_way = state.step < parts.schedule.total_steps
    predictions = Predictions() if parts.run.data.num_classes else None
    options = {"with_teachers": True, "allow_tf32": is_on_the_way, "predictions": predictions}
    result = _evaluate_weights(parts, **options)
    if result is None:
        return False
    values = {PREFIX + name: value for name, value in result.items()}
    loaders = [parts.val_loader, *(parts.knn_loaders or ())]
    log.log(state.step, values | skipped_images("val_images_skipped", parts, *loaders))
    if predictions is not None:
        classes, numbers = list(parts.val_loader.classes), parts.val_loader.val_numbers()
        log.keep_predictions(state.step, {"classes": classes} | predictions.result(numbers))
    state.result, state.result_step = result, state.step
    quality = deciding(kind_of(parts))
    is_first = not state.best_step and math.isfinite(result[quality])
    if is_first or VAL_METRICS[quality].is_better(result[quality], state.best_top1):
        state.best_top1 = result[quality]
        state.best_step = state.step
    return True


def kind_of(parts: Parts) -> str:
    """Return the kind of metrics (see `vitkd_ds.config.metrics`).

    It is "classes" for a student with a classifier, and "features" for a student without one.
    """
    return "classes" if parts.run.data.num_classes else "features"


def _evaluate_weights(
    parts: Parts,
    *,
    with_teachers: bool,
    average: bool = True,
    allow_tf32: bool = False,
    predictions: Predictions | None = None,
) -> dict[str, float] | None:
    def must_stop() -> bool:
        return not ranks.all_true(not signals.received(), parts.device)

    model, normalization = parts.export_model, parts.normalization
    # The loss terms' parameters match only the exported weights.
    watched = parts.watched if average else {}
    weights = parts.engine.weights_of("student", *watched, average=average)
    model.load_state_dict(weights["student"])
    options = {"normalization": normalization, "must_stop": must_stop, "allow_tf32": allow_tf32}
    if not parts.run.data.num_classes:
        watch = {name: [] for name in parts.teachers}
        for term, part in watched.items():
            part.load_state_dict(weights[term])
            watch[teacher_of(part.term, parts.teachers)].append(deepcopy(part).to(parts.device).metrics)
        result = evaluate_features(model, parts.val_loader, teachers=parts.teachers, watch=watch, **options)
        if result is None or parts.knn_loaders is None or not average:
            return result
        neighbours = evaluate_knn(model, parts.knn_loaders, **options)
        return neighbours and result | neighbours
    teachers = {name: parts.teachers[name] for name in parts.answering} if with_teachers else {}
    return evaluate(model, parts.val_loader, teachers=teachers, predictions=predictions, **options)


def skipped_images(name: str, parts: Parts, *loaders: Loader) -> dict[str, float]:
    """Return the number of images that all ranks have skipped so far, under the key `name`. Collective.

    The result is empty unless data.on_bad is "skip".
    """
    if parts.run.data.on_bad != "skip":
        return {}
    num_skipped = torch.tensor(sum(loader.num_skipped for loader in loaders), device=parts.device)
    return {name: ranks.sum_over_ranks(num_skipped).item()}


def finish(
    parts: Parts, state: TrainState, images_per_s: float | None, *, check: Callable[[], None]
) -> dict[str, Any] | None:
    """Export the student, write the summary and mark the folder as done. Collective.

    Return the summary, or None if a signal arrived before the export.
    """
    watchdog.enter("export", state.step)
    result = state.result
    kind = kind_of(parts)
    quality = deciding(kind)
    summary: dict[str, Any] = summary_of(result, kind) | {
        "images_per_s": images_per_s,
        "epochs": state.step / parts.schedule.steps_per_epoch,
        "steps": state.step,
        "world_size": ranks.world_size(),
        "debug": parts.run.debug,
    }
    if parts.run.optim.ema_decay:
        raw = _evaluate_weights(parts, average=False, with_teachers=False)
        if raw is None:
            return None
        summary[f"student_raw_{quality}"] = raw[quality]
    weights = parts.engine.student_weights()
    description = parts.student_description() | {"step": state.step, quality: result[quality]}
    workdir = Path(parts.run.workdir)

    def write() -> None:
        check()
        write_student(workdir, weights, description)
        write_json(workdir / SUMMARY, summary)
        sync_folder(workdir)  # a run marked done never restarts, so its files must be on disk first
        write_text(workdir / DONE, "")
        sync_folder(workdir)

    ranks.on_main(write)
    return summary
