"""Check a run's files and settings, and build its components on one rank.

`vitkd-ds doctor` calls the same functions one at a time.
"""

import logging
from collections import deque
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from vitkd_ds.config.image_sizes import Phases
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.config.teachers import called, role_of, stored
from vitkd_ds.data.crops import val_interpolation
from vitkd_ds.data.epochs import Loader
from vitkd_ds.data.images import check_classes
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models import arguments, build, create
from vitkd_ds.models.distiller import Distiller, LossPart
from vitkd_ds.models.features import describe_pooled
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.models.pair import PairInfo, check_pair
from vitkd_ds.models.selection import check_selection
from vitkd_ds.train import watchdog
from vitkd_ds.train.inputs import Inputs
from vitkd_ds.train.loaders import open_knn, open_split
from vitkd_ds.train.schedule import BatchSplit, Schedule, build_phases, check_warmup, make_schedule, split_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """Student and teachers on the CPU in fp32, identical on every rank."""

    student: nn.Module
    teachers: dict[str, nn.Module]
    pairs: dict[str, PairInfo | None]
    """Teacher name to widths and patch grids of student and teacher; None if no term compares that teacher's tokens."""


@dataclass(frozen=True)
class Parts:
    """Components of one run on one rank."""

    run: Run
    schedule: Schedule
    device: torch.device
    engine: StudentEngine
    teachers: dict[str, Teacher]
    export_model: nn.Module
    """Student in fp32 for evaluating the weights to export."""
    normalization: Normalization
    """Student's input normalisation."""
    inputs: Inputs
    """Preprocessor from a micro-batch to the inputs of all models."""
    answering: tuple[str, ...] = ()
    """Names of the teachers that predict the data's classes; their agreement with the student is evaluated."""
    watched: dict[str, LossPart] = field(default_factory=dict)
    """Loss terms whose metrics are evaluated in a run without labels, by name. They are fp32 copies on the CPU."""
    knn_loaders: tuple[Loader, Loader] | None = None
    """Two loaders of labelled images for k-NN, with validation crops: the neighbours, and the images to classify."""
    phases: Phases | None = None
    """Size of the training images in each epoch; None if it is always data.image_size."""
    train_loader: Loader | None = None
    """None in `vitkd-ds doctor`, which trains on random images. The same holds for val_loader."""
    val_loader: Loader | None = None

    def student_description(self) -> dict[str, Any]:
        """Return the content of student.json: how to rebuild the student with timm and preprocess its inputs."""
        data, classes = self.run.data, list(self.train_loader.classes)
        made, normalization = create.model_args_of(self.run.student, data), asdict(self.normalization)
        if not arguments.takes_image_size(type(self.export_model)):
            del made["args"]["img_size"]
        interpolation = val_interpolation(data.interpolation)
        # timm's helpers, such as resolve_model_data_config, read these from the rebuilt model.
        made["args"]["pretrained_cfg_overlay"] = normalization | {
            "input_size": [3, data.image_size, data.image_size],
            "crop_pct": data.val_crop_fraction,
            "interpolation": interpolation,
            "num_classes": len(classes),
            "label_names": classes,
        }
        description = made | {
            "normalization": normalization,
            "image_size": data.image_size,
            "val_crop_fraction": data.val_crop_fraction,
            "interpolation": interpolation,
            "classes": classes,
            "weights": "ema" if self.run.optim.ema_decay else "raw",
            "recipe": self.run.recipe,
        }
        if not classes:
            description["features"] = describe_pooled(self.export_model)
        teachers = {
            name: {"model": teacher.model, "license": build.license_of(teacher)}
            for name, teacher in self.run.teachers.items()
        }
        return description | (stored(teachers) if teachers else {})


def build_parts(run: Run, device: torch.device) -> Parts:
    """Check the data and build loaders, models and engines. Collective.

    Raises:
        ValueError: a setting, file or model is invalid or incompatible. It is raised on all ranks.
    """
    split = split_of(run)
    # If a file is missing on one node, all ranks must end: the other ranks would wait forever in the first collective.
    ds_config = ranks.together(lambda: student_ds_config(run, **asdict(split)))
    train_loader = ranks.together(lambda: open_split(run, "train", split.micro_batch_size, device))
    classes = train_loader.classes
    val_loader = ranks.together(lambda: open_split(run, "val", split.micro_batch_size, device, classes=classes))
    knn_loaders = ranks.together(lambda: open_knn(run, split.micro_batch_size, device))
    knowing = ranks.together(lambda: [name for name in run.teachers if check_teacher_classes(run, name, classes)])
    for name, teacher in run.teachers.items():
        if teacher.checkpoint == "random":
            logger.info("DEBUG RUN: %s has random weights; the student cannot learn from it", called(name))
    steps_per_epoch = train_loader.steps_per_epoch
    schedule = make_schedule(run, steps_per_epoch=steps_per_epoch, accumulation_steps=split.accumulation_steps)
    check_warmup(run, schedule)
    phases = build_phases(run, schedule)
    if phases:  # they depend on the number of images, so the images are opened a second time
        train_loader.close()
        train_loader = ranks.together(lambda: open_split(run, "train", split.micro_batch_size, device, phases=phases))
    models = ranks.together(lambda: build_models(run, classes))
    parts = start_engines(run, ds_config, models, schedule, device)
    answering = tuple(name for name in parts.answering if name in knowing)
    loaders = {"train_loader": train_loader, "val_loader": val_loader, "knn_loaders": knn_loaders}
    return replace(parts, answering=answering, phases=phases, **loaders)


def start_engines(
    run: Run, ds_config: dict[str, Any], models: Models, schedule: Schedule, device: torch.device
) -> Parts:
    """Move the models into their engines. Return all components except the loaders. Collective."""
    micro = ds_config["train_micro_batch_size_per_gpu"]
    if device.type == "cpu":
        for model in (models.student, *models.teachers.values()):
            build.without_fused_attention(model)
    # Copy before the engine rounds the student to bf16 and moves it to the device.
    export_model = deepcopy(models.student).to(device).eval()
    keep_tokens = {name: teacher.keep_tokens for name, teacher in run.teachers.items()}
    torch.manual_seed(run.seed + 1)  # the losses' layers start equal on every rank, for any teacher placement
    distiller = Distiller(models.student, run.losses, models.pairs, ranks.gather, keep_tokens=keep_tokens)
    active = {} if run.data.num_classes else run.losses.active()
    watched = {name: deepcopy(distiller.parts[name]).eval() for name, term in active.items() if term.is_watched}
    engine = StudentEngine(distiller, run, ds_config)
    normalization = build.normalization_of(models.student)
    answering = tuple(name for name, model in models.teachers.items() if model.num_classes)
    left: deque[tuple[Any, int]] = deque()  # shared, so that one limit on gathered blocks holds for all teachers
    teachers = {}
    for name, model in models.teachers.items():
        check_is_read_alike(model, role_of(name))
        teachers[name] = Teacher(
            model,
            run,
            name,
            device=device,
            micro_batch_size=micro,
            on_block=lambda: watchdog.enter("build"),
            left=left,
        )
    inputs = Inputs(run, normalization, engine.dtype, teachers, device)
    return Parts(run, schedule, device, engine, teachers, export_model, normalization, inputs, answering, watched)


def check_is_read_alike(teacher: nn.Module, role: str) -> None:
    """Raise ValueError on all ranks unless all hold the whole teacher or all stream its blocks. Collective.

    Ranks that stream the weights block by block and ranks that hold the whole teacher call different collectives, so a
    mixture would deadlock.
    """
    are_streamed = ranks.from_all(hasattr(teacher, "weight_stream"))
    if len(set(are_streamed)) > 1:
        whole = [number for number, is_streamed in enumerate(are_streamed) if not is_streamed]
        raise ValueError(
            f"{role}.checkpoint differs between nodes: ranks {', '.join(map(str, whole))} cannot stream it, because "
            "it is not a safetensors file or needs conversion; other ranks can. Copy the same file to every node."
        )


def split_of(run: Run) -> BatchSplit:
    """Split the run's global batch over its ranks. Raise ValueError if it cannot be split equally."""
    return split_batch(run.global_batch_size, world_size=ranks.world_size(), limit=run.micro_batch_size_per_gpu)


def check_teacher_classes(run: Run, name: str, classes: tuple[str, ...]) -> bool:
    """Return whether a teacher has the data's classes in the same order.

    The .json file next to the teacher's weights may list its classes. Without such a list, the result is True.

    Raises:
        ValueError: the classes differ, and a loss term compares the teacher's logits.
    """
    teacher = run.teachers[name]
    if teacher.head or teacher.checkpoint in ("hub", "random"):
        return True
    file = build.teacher_file(teacher)
    described = description_beside(file)
    if "classes" not in described:
        return True
    if run.losses_of(name).needs.logits:
        check_classes(classes, tuple(described["classes"]), source=str(file.with_suffix(".json")))
    return classes == tuple(described["classes"])


def build_models(run: Run, classes: tuple[str, ...] | None = None) -> Models:
    """Build the student and teachers with their weights, for the data's `classes`.

    Raises:
        ValueError: the models do not fit each other, or weights do not fit their model.
    """
    torch.manual_seed(run.seed)  # the same student on every rank
    student = build.build_student(run.student, run.data, classes=classes, **student_needs(run))
    teachers = {
        name: build.build_teacher(teacher, run.data, role=role_of(name), **teacher_needs(run, name))
        for name, teacher in run.teachers.items()
    }
    return fit_models(run, student, teachers)


def student_needs(run: Run) -> dict[str, Any]:
    """Return the `build_student` arguments that the active loss terms and `student.init` require."""
    return {"needs_blocks": run.losses.needs.blocks("student"), "teachers": run.teachers}


def teacher_needs(run: Run, name: str) -> dict[str, bool]:
    """Return the `build_teacher` arguments that the active loss terms require of a teacher."""
    needs = run.losses_of(name).needs
    stream = run.teachers[name].placement != "replica"
    return {"needs_blocks": needs.blocks("teacher"), "needs_logits": needs.logits, "stream": stream}


def fit_models(run: Run, student: nn.Module, teachers: dict[str, nn.Module]) -> Models:
    """Check that a run's models fit each other, and return them. Raise ValueError if they do not fit."""
    pairs = {}
    for name, teacher in teachers.items():
        config = run.teachers[name]
        sizes = {"image_size": run.data.image_size, "teacher_image_size": config.image_size}
        pairs[name] = check_pair(student, teacher, run.losses_of(name), **sizes)
        if config.keep_tokens:
            check_selection(student, teacher, config.keep_tokens, place=role_of(name))
    return Models(student, teachers, pairs)
