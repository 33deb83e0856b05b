"""What a run says of itself at its start, in its log and in config.json: both models, the learning rate, the steps."""

import logging
from dataclasses import replace
from typing import Any

import torch

from vitkd_ds.checkpoint.folder import describe_run
from vitkd_ds.config.run import Run, peak_lr
from vitkd_ds.models import build
from vitkd_ds.models.cost import cost_of
from vitkd_ds.train.parts import Parts, student_needs, teacher_needs
from vitkd_ds.train.schedule import asked_warmup

logger = logging.getLogger(__name__)


def introduce(parts: Parts, resumed_step: int, *, workdir: str) -> dict[str, dict[str, Any] | None]:
    """Log what is trained, write config.json, and return the costs of both models. For rank 0 alone."""
    run, schedule, models = parts.run, parts.schedule, model_costs(parts.run)
    for role, cost in models.items():
        if cost:
            logger.info("%s", _model_line(run, role, cost))
    peak, steps = peak_lr(run), schedule.total_steps
    logger.info(
        f"learning rate: {run.optim.lr:g} for {run.optim.lr_batch_size} images is {peak:g} for "
        f"{run.global_batch_size}, reached after {schedule.warmup_steps} of {steps} steps and "
        f"{'falling' if run.optim.min_lr <= peak else 'rising'} to {run.optim.min_lr:g}"
    )
    asked = round(asked_warmup(run, steps, schedule.steps_per_epoch))
    if schedule.warmup_steps < min(asked, steps):
        logger.info(
            f"the warm-up is shortened from {asked} to {schedule.warmup_steps} steps, in proportion to the run, which "
            f"max_steps={run.max_steps} ends within it"
        )
    if schedule.warmup_steps >= steps:
        logger.warning("the learning rate never falls: the warm-up takes all %d steps of this debug run", steps)
    images = {"train": parts.train_loader.fingerprint, "val": parts.val_loader.fingerprint}
    described = {"models": models, "images": images, "workdir": workdir}
    describe_run(run, schedule, device=parts.device.type, resumed_step=resumed_step, **described)
    return models


def model_costs(run: Run) -> dict[str, dict[str, Any] | None]:
    """Name, parameters, tokens, head and GFLOPs of an image, of student and teacher, and the licence of the teacher's
    weights; None without a teacher."""
    student = replace(run.student, init="", checkpoint_activations=False)
    with torch.device("meta"):
        models = {"student": build.build_student(student, run.data, **student_needs(run)), "teacher": None}
        if run.teacher:
            teacher = replace(run.teacher, checkpoint="random")
            models["teacher"] = build.build_teacher(teacher, run.data, **teacher_needs(run))
    costs = {
        "student": {"model": run.student.model, **cost_of(models["student"], run.data.image_size)},
        "teacher": None,
    }
    if teacher := run.teacher:
        size = teacher.image_size or run.data.image_size
        cost = cost_of(models["teacher"], size, keep_tokens=teacher.keep_tokens)
        costs["teacher"] = {"model": teacher.model, **cost, "license": build.license_of(teacher)}
    return costs


def _model_line(run: Run, role: str, cost: dict[str, Any]) -> str:
    config = getattr(run, role)
    weights = config.init or "random" if role == "student" else config.checkpoint
    args = f" {dict(config.model_args)}" if config.model_args else ""
    head = f"{cost['head']}, " if cost["head"] else ""
    tokens = f"{cost['tokens']} tokens, " if cost["tokens"] else ""
    size = f"{cost['parameters'] / 1e6:.2f} M parameters, {head}{tokens}{cost['gflops']:.3g} GFLOPs"
    pixels = getattr(config, "image_size", 0) or run.data.image_size
    licensed = f" (licence: {cost['license']})" if cost.get("license") else ""
    return f"{role}: {cost['model']}{args}, {size} an image of {pixels} pixels, weights: {weights}{licensed}"
