"""Describe a run at its start, in the log and in config.json."""

import logging
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import vitkd_ds
from vitkd_ds.checkpoint.files import write_json
from vitkd_ds.checkpoint.folder import git_commit
from vitkd_ds.config import teachers
from vitkd_ds.config.run import Run, as_dict, peak_lr
from vitkd_ds.config.run_folder import CONFIG, DONE, read_json
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import device_name
from vitkd_ds.models import build
from vitkd_ds.models.cost import cost_of
from vitkd_ds.train.parts import Parts, split_of, student_needs, teacher_needs
from vitkd_ds.train.schedule import asked_warmup

logger = logging.getLogger(__name__)


def introduce(parts: Parts, resumed_step: int, *, workdir: str) -> dict[str, dict[str, Any] | None]:
    """Log the setup, write config.json, and return all models' FLOPs and parameters. Rank 0 only."""
    run = parts.run
    schedule = parts.schedule
    models = model_costs(parts.run)
    logger.info("%s", _model_line(run, "student", models["student"]))
    for name, cost in teachers.read(models).items():
        logger.info("%s", _model_line(run, teachers.role_of(name), cost))
    peak = peak_lr(run)
    steps = schedule.total_steps
    logger.info(
        f"peak learning rate: {peak:g} for a batch of {run.global_batch_size} images (optim.lr is {run.optim.lr:g} for "
        f"{run.optim.lr_batch_size} images), reached after {schedule.warmup_steps} of {steps} steps, then "
        f"{'falling' if run.optim.min_lr <= peak else 'rising'} to {run.optim.min_lr:g}"
    )
    asked = round(asked_warmup(run, steps, schedule.steps_per_epoch))
    if schedule.warmup_steps < min(asked, steps):
        logger.info(
            f"the warm-up is shortened from {asked} to {schedule.warmup_steps} steps, in proportion to the run, "
            f"because max_steps={run.max_steps} would end the run during warm-up"
        )
    if schedule.warmup_steps >= steps:
        logger.warning("the learning rate never decays: the warm-up takes all %d steps of this debug run", steps)
    for phase in describe_phases(parts):
        logger.info("epochs %d to %d: images of %d px", *phase["epochs"], phase["image_size"])
    describe_run(parts, resumed_step, models=models, workdir=workdir)
    return models


def describe_run(parts: Parts, resumed_step: int, *, models: dict[str, Any], workdir: str) -> None:
    """Write config.json, and remove the `done` file, so that a run that is being extended counts as unfinished.

    A run writes config.json again when it resumes. Its settings are unchanged, but its folder may have been moved, and
    packages may have been updated.

    Args:
        models: costs of all models, from `model_costs`.
        workdir: run folder as spelled in the command.
    """
    run = parts.run
    folder = Path(run.workdir)
    versions = {"vitkd_ds": vitkd_ds.__version__}
    for name in ("torch", "deepspeed", "timm", "ffcv", "numpy"):
        with suppress(PackageNotFoundError):  # the torchvision backend does not need FFCV
            versions[name] = version(name)
    (folder / DONE).unlink(missing_ok=True)
    extended, starts = _history(run, parts.schedule.total_steps, resumed_step)
    now = {"step": resumed_step, "time": time.strftime("%Y-%m-%d %H:%M:%S"), "ranks": ranks.world_size()}
    content = {
        "run": as_dict(run) | {"workdir": workdir},
        "plan": asdict(parts.schedule),  # run folders of all versions call the schedule "plan"
        "resumed_step": resumed_step,
        "extended_at_steps": extended,
        "starts": [*starts, now | {"device": device_name()}],
        "world_size": ranks.world_size(),
        "device": parts.device.type,
        "command": sys.argv,
        "git_commit": git_commit(),
        "versions": versions,
        "models": models,
        "images": {"train": parts.train_loader.fingerprint, "val": parts.val_loader.fingerprint},
    }
    if phases := describe_phases(parts):
        content["phases"] = phases
    write_json(folder / CONFIG, content)


def describe_phases(parts: Parts) -> list[dict[str, Any]]:
    """Return image size, first and last epoch (from 1) and micro-batch size of each phase; [] without phases."""
    if not parts.phases:
        return []
    starts = (0, *parts.phases.ends)
    micro = split_of(parts.run).micro_batch_size
    return [
        {"image_size": size, "epochs": [start + 1, end], "micro_batch_size": micro}
        for size, start, end in zip(parts.phases.sizes, starts, parts.phases.ends)
        if start < end  # a debug run may be too short for a phase
    ]


def _history(run: Run, total_steps: int, resumed_step: int) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the list of steps where the run was extended, now or earlier, and the list of its earlier launches."""
    config = Path(run.workdir) / CONFIG
    if not resumed_step:
        return [], []
    if not config.exists():  # the run starts from another run's checkpoint
        return [resumed_step] if run.extend else [], []
    before = read_json(config, {"plan.total_steps": int, "extended_at_steps": list | None, "starts": list | None})
    is_longer = before["plan"]["total_steps"] < total_steps
    extended = before.get("extended_at_steps") or []
    return [*extended, *[resumed_step] * is_longer], before.get("starts") or []


def model_costs(run: Run) -> dict[str, dict[str, Any] | None]:
    """Return each model's name, head, number of parameters and tokens, and GFLOPs per image.

    The layout is as in config.json. The entry of a teacher also contains the licence of its weights. In a run without
    a teacher, the entry `teacher` is None.
    """
    student = replace(run.student, init="", checkpoint_activations=False)
    with torch.device("meta"):
        model = build.build_student(student, run.data, **student_needs(run))
        models = {
            name: build.build_teacher(replace(teacher, checkpoint="random"), run.data, **teacher_needs(run, name))
            for name, teacher in run.teachers.items()
        }
    costs = {}
    for name, teacher in run.teachers.items():
        size = teacher.image_size or run.data.image_size
        cost = cost_of(models[name], size, keep_tokens=teacher.keep_tokens)
        costs[name] = {"model": teacher.model, **cost, "license": build.license_of(teacher)}
    return {"student": {"model": run.student.model, **cost_of(model, run.data.image_size)}} | teachers.stored(costs)


def _model_line(run: Run, role: str, cost: dict[str, Any]) -> str:
    config = run.models[role]
    weights = config.init or "random" if role == "student" else config.checkpoint
    args = f" {dict(config.model_args)}" if config.model_args else ""
    head = f"{cost['head']}, " if cost["head"] else ""
    tokens = f"{cost['tokens']} tokens, " if cost["tokens"] else ""
    size = f"{cost['parameters'] / 1e6:.2f} M parameters, {head}{tokens}{cost['gflops']:.3g} GFLOPs"
    pixels = getattr(config, "image_size", 0) or run.data.image_size
    licensed = f" (licence: {cost['license']})" if cost.get("license") else ""
    return f"{role}: {cost['model']}{args}, {size} per {pixels}-px image, weights: {weights}{licensed}"
