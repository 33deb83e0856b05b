"""Evaluate an exported student: rebuild it with timm, in one process and without DeepSpeed."""

import logging
from pathlib import Path
from typing import Any

import torch

from vitkd_ds.commands.pack.folders import find_packed
from vitkd_ds.config.options import WEIGHTS
from vitkd_ds.config.overrides import read_run
from vitkd_ds.config.run import DataConfig, Run, TeacherConfig
from vitkd_ds.config.run_folder import (
    DESCRIPTION,
    EXPORTED,
    POINTERS,
    STUDENT,
    description_beside,
    find_student,
    find_weights,
    model_of,
    read_json,
)
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.models.features import tap_features
from vitkd_ds.train.evaluate import evaluate

logger = logging.getLogger(__name__)


def evaluate_exported(
    student: str, *, val: str = "", teacher: str = "", teacher_checkpoint: str = "", micro_batch_size: int = 64
) -> dict[str, float]:
    """Evaluate an exported student in fp32 on this machine's first device, as `vitkd_ds.train.evaluate.evaluate` does.

    Args:
        student: a run folder, a checkpoint or an exported student.
        val: a .beton, or a class folder that is packed, whose classes must be among the student's; "" is the run's own.
        teacher: timm name, or a run, checkpoint or exported student; "" is the run's teacher, and none outside a run
            folder.
        teacher_checkpoint: weights of a named teacher: a local file, or a run, checkpoint or exported student; "" is
            hub.
        micro_batch_size: images per forward.

    Raises:
        ValueError: files or models that do not fit, or no validation data.
    """
    folder = find_student(student)
    description = read_json(folder / DESCRIPTION, EXPORTED)
    # The student knows its architecture and how it wants its images; the run beside it knows data and teacher.
    beside = [place for place in (folder, folder.parent.parent) if (place / "config.json").is_file()]
    run = read_run(beside[0]) if beside else None
    val = val or (run.data.val if run else "")
    if not val:
        raise ValueError(f"validation data must be known, found no config.json beside {folder}: give --val FILE")
    data = DataConfig(
        train="", val=find_packed("val", val), image_size=description["image_size"],
        num_classes=len(description["classes"]),
        val_crop_fraction=description["val_crop_fraction"], interpolation=description["interpolation"],
        max_val_images=run.data.max_val_images if run else 0,
    )  # fmt: skip
    teacher_config = _teacher_of(run, teacher, teacher_checkpoint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build.build_exported(description, folder / STUDENT).to(device)
    classes = tuple(description["classes"])
    loader = build_loader(data, split="val", micro_batch_size=micro_batch_size, classes=classes, device=device)
    if teacher_config and not _has_classes(teacher_config, classes):
        teacher_config = None
    features = _teacher_features(teacher_config, data, device) if teacher_config else None
    return evaluate(model, loader, normalization=build.normalization_of(model), teacher=features)


def _teacher_of(run: Run | None, teacher: str, checkpoint: str) -> TeacherConfig | None:
    """The teacher that the options name, or else the run's own; raises ValueError if the options do not fit."""
    if not teacher:
        if checkpoint:
            raise ValueError("--teacher_checkpoint needs --teacher, the timm name of its model")
        return run.teacher if run and run.teacher and run.teacher.checkpoint != "random" else None
    # A path, which a mistyped one must stay: no name of timm has a slash.
    if "/" in teacher or Path(teacher).exists() or teacher in POINTERS:
        if checkpoint:
            raise ValueError(
                f"--teacher must be a model's name where --teacher_checkpoint={checkpoint} gives its weights, found "
                f"{teacher}: leave one of them out"
            )
        weights = find_weights(teacher, "--teacher")
        if not (described := model_of(description_beside(weights))):
            raise ValueError(
                f"--teacher must be a model's name, or a run, checkpoint or export folder, found the file {teacher}: "
                f"name its model, and give --teacher_checkpoint={teacher}"
            )
        return TeacherConfig(**described, checkpoint=str(weights))
    # A name, with or without weights of one's own.
    if checkpoint in WEIGHTS["teacher"][1]:
        return TeacherConfig(model=teacher, checkpoint=checkpoint or "hub")
    weights = find_weights(checkpoint, "--teacher_checkpoint")
    described = model_of(description_beside(weights))
    if described and described["model"] != teacher:
        raise ValueError(
            f"--teacher must be the model of --teacher_checkpoint={checkpoint}, which is {described['model']}, found "
            f"{teacher}: give --teacher={checkpoint} alone"
        )
    return TeacherConfig(**{"model": teacher} | described, checkpoint=str(weights))


def _has_classes(config: TeacherConfig, classes: tuple[str, ...]) -> bool:
    """Whether a teacher's classes may be those of the images, in their order; a warning says if they are not."""
    if config.checkpoint == "hub":
        return True
    known = description_beside(build.teacher_file(config)).get("classes", list(classes))
    if list(classes) != known:
        logger.warning("the teacher %s has other classes than the student: no agreement", config.checkpoint)
    return list(classes) == known


def _teacher_features(config: TeacherConfig, data: DataConfig, device: torch.device) -> Any:
    model = build.build_teacher(config, data, needs_tokens=False, needs_logits=False).to(device)
    if not model.num_classes:
        logger.warning("the teacher %s has no logits for these classes: no agreement", config.model)
        return None
    normalization = build.normalization_of(model)
    return lambda images_BCHW: tap_features(model, normalization.apply(images_BCHW, torch.float32), ())
