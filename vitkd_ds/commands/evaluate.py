"""Evaluate an exported student with timm, in one process and without DeepSpeed."""

import logging
from pathlib import Path
from typing import Any

import torch

from vitkd_ds.commands.early import check_has_images
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
    """Evaluate an exported student in fp32 on this machine's first GPU, or on the CPU. Return its metrics by name.

    `vitkd_ds.train.evaluate` describes the metrics: see `evaluate`, or `evaluate_features` for students without a
    classifier.

    Args:
        student: a run folder, a checkpoint or an exported student.
        val: a .beton or a packed folder. The student must have all its classes. "" uses the run's validation images.
        teacher: a timm name, a run folder, a checkpoint or an exported student; "" uses the run's teachers, if any.
        teacher_checkpoint: weights of a timm `teacher`: a file, run folder, checkpoint or export; "" uses the hub's.
        micro_batch_size: images per forward pass.
        knn, probe: evaluate pooled features instead, see `vitkd_ds.commands.probe.probe_exported`.
        train: labelled training images; only for `knn` and `probe`.

    Raises:
        ValueError: a file, model or option is invalid or does not fit the others; or there are no validation images.
    """
    if knn or probe:
        if teacher or teacher_checkpoint:
            raise ValueError("--teacher has no effect with --knn and --probe. Remove it.")
        return probe_exported(student, knn=knn, probe=probe, train=train, val=val, micro_batch_size=micro_batch_size)
    if train:
        raise ValueError("--train needs --knn or --probe. Add one of them or remove --train.")
    exported = open_exported(student)
    run = exported.run
    classes = exported.classes
    device = first_device()
    kept = run.data.classes if run and not val else ""  # file that lists the classes in use; "" for all
    if not val:
        check_has_images(student)
    val = val or exported.own_images("val")
    # A student without a classifier needs no labels, so any labels are ignored.
    most = run.data.max_val_images if run else 0
    labels = "use" if classes else "ignore"
    path = find_packed("val", val)
    data = exported.data(path, num_classes=len(classes), max_val_images=most, labels=labels, classes=kept)
    teachers = _teachers_of(run, teacher, teacher_checkpoint)
    if not classes and not teachers:
        raise ValueError(
            f"{exported.folder} has no classifier and no teacher to compare its features with. Pass --teacher, or "
            "--knn --probe --train FILE --val FILE."
        )
    model = exported.model()
    loader = build_loader(data, split="val", micro_batch_size=micro_batch_size, classes=classes, device=device)
    fitting = {name: config for name, config in teachers.items() if not classes or _has_classes(config, classes)}
    built = {name: _teacher_features(config, data, device) for name, config in fitting.items()}
    features = {name: each for name, each in built.items() if each}
    measure = evaluate if classes else evaluate_features
    return measure(model, loader, normalization=build.normalization_of(model), teachers=features)


def _teachers_of(run: Run | None, teacher: str, checkpoint: str) -> dict[str, TeacherConfig]:
    """Return teachers by name: the one that the options specify or, without options, the run's teachers.

    The run's teachers with random weights are left out. Raise ValueError if the options conflict.
    """
    if teacher:
        return {USUAL: _teacher_of(teacher, checkpoint)}
    if checkpoint:
        raise ValueError("--teacher_checkpoint needs --teacher. Pass the timm name of its model.")
    own = run.teachers if run else {}
    return {name: config for name, config in own.items() if config.checkpoint != "random"}


def _teacher_of(teacher: str, checkpoint: str) -> TeacherConfig:
    """Return the settings of the teacher that the options name. Raise ValueError if the options conflict."""
    # timm names contain no slash, so a mistyped path is reported as a missing path, not as an unknown model.
    if "/" in teacher or Path(teacher).exists() or teacher in POINTERS:
        if checkpoint:
            raise ValueError(
                f"--teacher={teacher} and --teacher_checkpoint={checkpoint} both give weights. Remove one of them, or "
                "pass a timm name as --teacher."
            )
        weights = find_weights(teacher, "--teacher")
        if not (described := model_of(description_beside(weights))):
            raise ValueError(
                f"--teacher={teacher} is a file of weights without a description of its model. Pass its timm name as "
                f"--teacher, with --teacher_checkpoint={teacher}."
            )
        return TeacherConfig(**described, checkpoint=str(weights))
    # A timm name, with or without custom weights.
    if checkpoint in WEIGHTS[TeacherConfig][1]:
        return TeacherConfig(model=teacher, checkpoint=checkpoint or "hub")
    weights = find_weights(checkpoint, "--teacher_checkpoint")
    described = model_of(description_beside(weights))
    if described and described["model"] != teacher:
        raise ValueError(
            f"--teacher={teacher} is not the model of --teacher_checkpoint={checkpoint}, which is a "
            f"{described['model']}. Pass only --teacher={checkpoint}."
        )
    return TeacherConfig(**{"model": teacher} | described, checkpoint=str(weights))


def _has_classes(config: TeacherConfig, classes: tuple[str, ...]) -> bool:
    """Return whether a teacher's classes equal the images' classes, in the same order; if not, log a warning.

    Unknown classes of a teacher count as equal.
    """
    if config.checkpoint == "hub" or config.head:
        return True
    known = description_beside(build.teacher_file(config)).get("classes", list(classes))
    if list(classes) != known:
        logger.warning("skipping agreement with the teacher %s: its classes are different", config.checkpoint)
    return list(classes) == known


def _teacher_features(config: TeacherConfig, data: DataConfig, device: torch.device) -> Any:
    model = build.build_teacher(config, data, needs_blocks=False, needs_logits=False).to(device)
    if data.num_classes and not model.num_classes:
        logger.warning("skipping agreement with the teacher %s: it has no logits for these classes", config.model)
        return None
    normalization = build.normalization_of(model, image_size=config.image_size)
    return lambda images_BCHW: tap_features(model, normalization.apply(images_BCHW, torch.float32), ())
