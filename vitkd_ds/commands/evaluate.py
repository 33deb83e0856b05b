"""Evaluate an exported student: rebuild it with timm, in one process and without DeepSpeed."""

import logging
from pathlib import Path
from typing import Any

import torch

from vitkd_ds.commands.pack.folders import find_packed
from vitkd_ds.commands.predict import first_device, open_exported
from vitkd_ds.commands.probe import probe_exported
from vitkd_ds.config.options import WEIGHTS
from vitkd_ds.config.run import DataConfig, Run, TeacherConfig
from vitkd_ds.config.run_folder import POINTERS, description_beside, find_weights, model_of
from vitkd_ds.config.teachers import USUAL
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.models.features import tap_features
from vitkd_ds.train.evaluate import evaluate, evaluate_features

logger = logging.getLogger(__name__)


def evaluate_exported(
    student: str,
    *,
    val: str = "",
    teacher: str = "",
    teacher_checkpoint: str = "",
    micro_batch_size: int = 64,
    knn: bool = False,
    probe: bool = False,
    train: str = "",
) -> dict[str, float]:
    """Evaluate an exported student in fp32 on this machine's first device, as `vitkd_ds.train.evaluate` does: by
    `evaluate`, or without a classifier by `evaluate_features`.

    Args:
        student: a run folder, a checkpoint or an exported student.
        val: a .beton, or a class folder that is packed, whose classes must be among the student's; "" is the run's own.
        teacher: timm name, or a run, checkpoint or exported student; "" is the run's teacher, and none outside a run
            folder.
        teacher_checkpoint: weights of a named teacher: a local file, or a run, checkpoint or exported student; "" is
            hub.
        micro_batch_size: images per forward.
        knn, probe, train: `vitkd_ds.commands.probe.probe_exported` is called in place of all this.

    Raises:
        ValueError: files, models or options that do not fit, or no validation data.
    """
    if knn or probe:
        if teacher or teacher_checkpoint:
            raise ValueError("--teacher does not belong to --knn and --probe, which ask the student: leave it out")
        return probe_exported(student, knn=knn, probe=probe, train=train, val=val, micro_batch_size=micro_batch_size)
    if train:
        raise ValueError("--train belongs to --knn and --probe, found neither: add one of them, or leave it out")
    exported = open_exported(student)
    run = exported.run
    classes = exported.classes
    device = first_device()
    kept = run.data.classes if run and not val else ""  # of the run's own images, which may have more
    if not val and not run:
        raise ValueError(f"validation data must be known, found no config.json beside {exported.folder}: give --val")
    val = val or exported.own_images("val")
    # A student without a classifier needs no labels: whatever there are is left alone.
    most = run.data.max_val_images if run else 0
    labels = "use" if classes else "ignore"
    data = exported.data(
        find_packed("val", val), num_classes=len(classes), max_val_images=most, labels=labels, classes=kept
    )
    teachers = _teachers_of(run, teacher, teacher_checkpoint)
    if not classes and not teachers:
        raise ValueError(
            f"a student without a classifier is evaluated by --knn and --probe, or by how it agrees with a teacher, "
            f"found no teacher of {exported.folder}: give --knn --probe --train FILE --val FILE, or --teacher"
        )
    model = exported.model()
    loader = build_loader(data, split="val", micro_batch_size=micro_batch_size, classes=classes, device=device)
    fitting = {name: config for name, config in teachers.items() if not classes or _has_classes(config, classes)}
    built = {name: _teacher_features(config, data, device) for name, config in fitting.items()}
    features = {name: each for name, each in built.items() if each}
    measure = evaluate if classes else evaluate_features
    return measure(model, loader, normalization=build.normalization_of(model), teachers=features)


def _teachers_of(run: Run | None, teacher: str, checkpoint: str) -> dict[str, TeacherConfig]:
    """The teacher that the options name, or else the run's own; raises ValueError if the options do not fit."""
    if teacher:
        return {USUAL: _teacher_of(teacher, checkpoint)}
    if checkpoint:
        raise ValueError("--teacher_checkpoint needs --teacher, the timm name of its model")
    own = run.teachers if run else {}
    return {name: config for name, config in own.items() if config.checkpoint != "random"}


def _teacher_of(teacher: str, checkpoint: str) -> TeacherConfig:
    """The teacher that the options name; raises ValueError if they do not fit."""
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
    if checkpoint in WEIGHTS[TeacherConfig][1]:
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
    if config.checkpoint == "hub" or config.head:
        return True
    known = description_beside(build.teacher_file(config)).get("classes", list(classes))
    if list(classes) != known:
        logger.warning("the teacher %s has other classes than the student: no agreement", config.checkpoint)
    return list(classes) == known


def _teacher_features(config: TeacherConfig, data: DataConfig, device: torch.device) -> Any:
    model = build.build_teacher(config, data, needs_blocks=False, needs_logits=False).to(device)
    if data.num_classes and not model.num_classes:
        logger.warning("the teacher %s has no logits for these classes: no agreement", config.model)
        return None
    normalization = build.normalization_of(model, image_size=config.image_size)
    return lambda images_BCHW: tap_features(model, normalization.apply(images_BCHW, torch.float32), ())
