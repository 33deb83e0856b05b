"""Evaluate a student exactly: on the way, and at the end with the summary and the export.

Each validation image is counted once at any number of ranks. A signal ends an evaluation: the checkpoint of that step
is there already, so the next start has only the evaluation to do again.
"""

from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.checkpoint.export import write_student
from vitkd_ds.checkpoint.files import sync_folder, write_json, write_text
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.data.loader import Loader
from vitkd_ds.engine import ranks
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.models.fp32 import fp32_products
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train import signals, watchdog
from vitkd_ds.train.agreement import Agreement, Cosines
from vitkd_ds.train.log import MetricsLog
from vitkd_ds.train.parts import Parts
from vitkd_ds.train.predictions import Predictions

MICRO_BATCHES_PER_LOOK = 8
"""Micro-batches between stop checks; each check waits for the device and all ranks."""


@torch.no_grad()
def evaluate(
    student: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    teacher: Callable[[Tensor], Features] | None = None,
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
    predictions: Predictions | None = None,
) -> dict[str, float] | None:
    """Evaluate a plain timm model in fp32. Collective: all ranks call it, with loaders of the same length.

    Args:
        student: the model that will be exported, in fp32, on the loader's device; `normalization` is its own.
        loader: gives padding rows the label -1; they count for nothing.
        teacher: images 0..255 -> features; None gives no agreement.
        must_stop: collective; asked every few micro-batches whether to give up.
        allow_tf32: let a GPU multiply in TF32, with 10 bits of mantissa, several times faster.
        predictions: gets the answers for each image; None leaves them.

    Returns:
        Percent: `top1`, `top5` and with a teacher `teacher_top1`, `agreement` (the same most likely class); `kl`:
        KL(teacher || student) in nats, mean over images. `num_images`. None if it was given up.

    Raises:
        ValueError: there was no image that counts.
    """
    device = next(student.parameters()).device
    sums: Tensor = torch.zeros(6, dtype=torch.float64, device=device)
    student.eval()
    with closing(loader.epoch(0)) as micro_batches:
        for number, (images_BCHW, labels_B) in enumerate(watchdog.each(micro_batches, "evaluation"), start=1):
            if number % MICRO_BATCHES_PER_LOOK == 0 and must_stop():
                return None
            # Around the student alone: for a compiled teacher another precision would be another graph.
            with fp32_products(allow_tf32):
                student_BK = student(normalization.apply(images_BCHW, torch.float32))
            teacher_BK = teacher(images_BCHW).logits_BK.float() if teacher else None
            sums += _count(student_BK, teacher_BK, labels_B)
            if predictions is not None:
                predictions.add(student_BK, teacher_BK, labels_B)
    # Sums, not means, travel between the ranks: they may have different numbers of images that count.
    count, top1, top5, teacher_top1, agreement, kl = ranks.sum_over_ranks(sums).tolist()
    _check_count(count)
    result = {"num_images": count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    if teacher:
        result |= {"teacher_top1": 100 * teacher_top1 / count, "agreement": 100 * agreement / count, "kl": kl / count}
    return result


@torch.no_grad()
def evaluate_features(
    student: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    teacher: Callable[[Tensor], Features],
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
    cosines: Cosines | None = None,
) -> dict[str, float] | None:
    """Compare the features of a plain timm model in fp32, with or without a classifier, with a teacher's; labels count
    for nothing but padding. Collective, and the arguments are those of `evaluate`.

    Args:
        teacher: images 0..255 -> features with pooled_BD and final_BPD.
        cosines: see `Agreement`.

    Returns:
        `num_images`, and what `Agreement` gives: `cka`, `cka_patches` where both have as many patches, and what
        `cosines` names. None if it was given up.

    Raises:
        ValueError: there was no image that counts.
    """
    num_images = torch.zeros((), dtype=torch.float64, device=next(student.parameters()).device)
    agreement = Agreement(cosines)
    student.eval()
    with closing(loader.epoch(0)) as micro_batches:
        for number, (images_BCHW, labels_B) in enumerate(watchdog.each(micro_batches, "evaluation"), start=1):
            if number % MICRO_BATCHES_PER_LOOK == 0 and must_stop():
                return None
            with fp32_products(allow_tf32):
                features = tap_features(student, normalization.apply(images_BCHW, torch.float32), ())
            agreement.add(features, teacher(images_BCHW), labels_B >= 0)
            num_images += (labels_B >= 0).sum()
    count = ranks.sum_over_ranks(num_images).item()
    _check_count(count)
    return {"num_images": count} | agreement.result()


def _check_count(count: float) -> None:
    if not count:
        raise ValueError(
            "an evaluation must count at least one image, found none in data.val that could be decoded: pack it again"
        )


def _count(student_BK: Tensor, teacher_BK: Tensor | None, labels_B: Tensor) -> Tensor:
    """Sums over the images that count: the six columns of `evaluate`."""
    is_real_B = labels_B >= 0
    best = student_BK.topk(min(5, student_BK.shape[1]), dim=1).indices
    is_hit = best == labels_B[:, None]
    columns = [is_real_B, is_hit[:, 0], is_hit.any(1), *[torch.zeros_like(is_real_B)] * 3]
    if teacher_BK is not None:
        teacher_best_B = teacher_BK.argmax(1)
        kl_B = F.kl_div(student_BK.log_softmax(1), teacher_BK.log_softmax(1), reduction="none", log_target=True).sum(1)
        columns[3:] = [teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]
    return (torch.stack([column.double() for column in columns]) * is_real_B).sum(1)


def evaluate_student(parts: Parts, log: MetricsLog, state: TrainState) -> bool:
    """Evaluate the weights that would be exported now; log and note the result, and the best. Return whether no signal
    came on any rank before the end. Collective."""
    watchdog.enter("evaluation", state.step)
    # The last evaluation is the summary's, in full fp32.
    is_on_the_way = state.step < parts.schedule.total_steps
    predictions = Predictions() if parts.run.data.num_classes else None
    options = {"with_teacher": True, "allow_tf32": is_on_the_way, "predictions": predictions}
    result = _evaluate_weights(parts, **options)
    if result is None:
        return False
    values = {f"val_{name}": value for name, value in result.items()}
    log.log(state.step, values | skipped_images("val_images_skipped", parts, parts.val_loader))
    if predictions is not None:
        classes, numbers = list(parts.val_loader.classes), parts.val_loader.val_numbers()
        log.keep_predictions(state.step, {"classes": classes} | predictions.result(numbers))
    state.result, state.result_step = result, state.step
    if (quality := result[quality_key(parts)]) > state.best_top1:
        state.best_top1, state.best_step = quality, state.step
    return True


def quality_key(parts: Parts) -> str:
    """The value of an evaluation by which the best checkpoint is chosen: top-1, or without classes the agreement."""
    return "top1" if parts.run.data.num_classes else "cka"


def _evaluate_weights(
    parts: Parts, *, with_teacher: bool, average: bool = True, allow_tf32: bool = False,
    predictions: Predictions | None = None,
) -> dict[str, float] | None:  # fmt: skip
    def must_stop() -> bool:
        return not ranks.all_true(not signals.received(), parts.device)

    model, normalization = parts.export_model, parts.normalization
    # The adapters are of use for the weights that are exported alone.
    modules = ["student", "feature"] if parts.feature is not None and average else ["student"]
    weights = parts.engine.weights_of(*modules, average=average)
    model.load_state_dict(weights["student"])
    options = {"normalization": normalization, "must_stop": must_stop, "allow_tf32": allow_tf32}
    if not parts.run.data.num_classes:
        cosines = None
        if "feature" in weights:
            parts.feature.load_state_dict(weights["feature"])
            cosines = deepcopy(parts.feature).to(parts.device).cosines
        return evaluate_features(model, parts.val_loader, teacher=parts.teacher, cosines=cosines, **options)
    teacher = parts.teacher if with_teacher and parts.teacher_answers else None
    return evaluate(model, parts.val_loader, teacher=teacher, predictions=predictions, **options)


def skipped_images(name: str, parts: Parts, loader: Loader) -> dict[str, float]:
    """Number of images of a loader that all ranks skipped so far, for the log; {} where none may be. Collective."""
    if parts.run.data.on_bad != "skip":
        return {}
    return {name: ranks.sum_over_ranks(torch.tensor(loader.num_skipped, device=parts.device)).item()}


def finish(parts: Parts, state: TrainState, images_per_s: float | None) -> dict[str, Any] | None:
    """Export the student, write the summary, mark the folder as done; None if a signal came before. Collective."""
    watchdog.enter("export", state.step)
    result, quality = state.result, quality_key(parts)
    summary: dict[str, Any] = {"cka": result.get("cka"), "cka_patches": result.get("cka_patches")}
    summary |= {name: value for name, value in result.items() if name.startswith("cosine")}
    if quality == "top1":
        summary = {"student_top1": result["top1"], "student_top5": result["top5"]}
        summary |= {name: result.get(name) for name in ("teacher_top1", "agreement")}
    summary |= {
        "images_per_s": images_per_s,
        "epochs": state.step / parts.schedule.steps_per_epoch,
        "steps": state.step,
        "world_size": ranks.world_size(),
        "debug": parts.run.debug,
    }
    if parts.run.optim.ema_decay:
        raw = _evaluate_weights(parts, average=False, with_teacher=False)
        if raw is None:
            return None
        summary[f"student_raw_{quality}"] = raw[quality]
    weights = parts.engine.student_weights()
    description = parts.student_description() | {"step": state.step, quality: result[quality]}
    workdir = Path(parts.run.workdir)

    def write() -> None:
        write_student(workdir, weights, description)
        write_json(workdir / "summary.json", summary)
        sync_folder(workdir)  # a finished run is never started again, so all of it must be there before `done` is
        write_text(workdir / "done", "")
        sync_folder(workdir)

    ranks.on_main(write)
    return summary
