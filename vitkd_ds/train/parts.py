"""The parts of a run on one rank: data opened, models built, both engines started, after all checks on files, models
and settings. `vitkd-ds doctor` calls the same functions, one by one."""

import logging
from collections import deque
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.config.teachers import called, role_of, stored
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.crops import val_interpolation
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.epochs import Loader
from vitkd_ds.data.images import check_classes
from vitkd_ds.data.loader import build_loader
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import num_cpus
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller, LossPart
from vitkd_ds.models.features import describe_pooled
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.models.pair import PairInfo, check_pair
from vitkd_ds.models.selection import check_selection
from vitkd_ds.train import watchdog
from vitkd_ds.train.inputs import Inputs
from vitkd_ds.train.probe import NEIGHBOURS
from vitkd_ds.train.schedule import BatchSplit, Schedule, check_warmup, make_schedule, split_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """Student and teachers on the CPU in fp32, the same on every rank."""

    student: nn.Module
    teachers: dict[str, nn.Module]
    pairs: dict[str, PairInfo | None]
    """Widths and grids of the student and each teacher, for the losses; None where no term compares its tokens."""


@dataclass(frozen=True)
class Parts:
    """The parts of one run on one rank."""

    run: Run
    schedule: Schedule
    device: torch.device
    engine: StudentEngine
    teachers: dict[str, Teacher]
    export_model: nn.Module
    """An fp32 copy of the student, into which the exported weights are loaded to be evaluated."""
    normalization: Normalization
    """The student's."""
    inputs: Inputs
    """Preprocessor from a micro-batch to the inputs of all models."""
    answering: tuple[str, ...] = ()
    """Teachers that have logits for the classes of the data, so that their agreement can be evaluated."""
    watched: dict[str, LossPart] = field(default_factory=dict)
    """Copies in fp32 on the CPU of the terms whose metrics an evaluation without labels computes, by name."""
    knn_loaders: tuple[Loader, Loader] | None = None
    """The labelled images that k-NN has as neighbours and those that it is asked for, cut as in validation."""
    train_loader: Loader | None = None
    """None, like val_loader, in the doctor, whose steps see random images."""
    val_loader: Loader | None = None

    def student_description(self) -> dict[str, Any]:
        """student.json: how to rebuild the student with timm and feed it."""
        data, classes = self.run.data, list(self.train_loader.classes)
        made, normalization = build.model_args_of(self.run.student, data), asdict(self.normalization)
        if not build.takes_image_size(type(self.export_model)):
            del made["args"]["img_size"]
        interpolation = val_interpolation(data.interpolation)
        # What timm's own helpers, such as resolve_model_data_config, must know of the rebuilt model.
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
    """Check the data, build loaders, models and engines. Collective.

    Raises:
        ValueError: whatever does not fit, on all ranks; the message names the key or file.
    """
    split = split_of(run)
    # What one node alone lacks must end all ranks: the others would wait for its rank in the first collective.
    ds_config = ranks.together(lambda: student_ds_config(run, **asdict(split)))
    train_loader = ranks.together(lambda: open_split(run, "train", split.micro_batch_size, device))
    classes = train_loader.classes
    val_loader = ranks.together(lambda: open_split(run, "val", split.micro_batch_size, device, classes=classes))
    knn_loaders = ranks.together(lambda: open_knn(run, split.micro_batch_size, device))
    knowing = ranks.together(lambda: [name for name in run.teachers if check_teacher_classes(run, name, classes)])
    for name, teacher in run.teachers.items():
        if teacher.checkpoint == "random":
            logger.info("DEBUG RUN: %s has random weights, nothing can be learned from it", called(name))
    steps_per_epoch = train_loader.steps_per_epoch
    schedule = make_schedule(run, steps_per_epoch=steps_per_epoch, accumulation_steps=split.accumulation_steps)
    check_warmup(run, schedule)
    models = ranks.together(lambda: build_models(run, classes))
    parts = start_engines(run, ds_config, models, schedule, device)
    answering = tuple(name for name in parts.answering if name in knowing)
    loaders = {"train_loader": train_loader, "val_loader": val_loader, "knn_loaders": knn_loaders}
    return replace(parts, answering=answering, **loaders)


def start_engines(
    run: Run, ds_config: dict[str, Any], models: Models, schedule: Schedule, device: torch.device
) -> Parts:
    """Start both engines, which take the models: parts without loaders, which suffice for a step. Collective."""
    micro = ds_config["train_micro_batch_size_per_gpu"]
    if device.type == "cpu":
        for model in (models.student, *models.teachers.values()):
            build.without_fused_attention(model)
    # Before the engine takes the student, which it rounds to bf16 and moves to the device.
    export_model = deepcopy(models.student).to(device).eval()
    keep_tokens = {name: teacher.keep_tokens for name, teacher in run.teachers.items()}
    torch.manual_seed(run.seed + 1)  # the same losses on every rank, wherever the teachers are
    distiller = Distiller(models.student, run.losses, models.pairs, ranks.gather, keep_tokens=keep_tokens)
    active = {} if run.data.num_classes else run.losses.active()
    watched = {name: deepcopy(distiller.parts[name]).eval() for name, term in active.items() if term.is_watched}
    engine = StudentEngine(distiller, run, ds_config)
    normalization = build.normalization_of(models.student)
    answering = tuple(name for name, model in models.teachers.items() if model.num_classes)
    left: deque[tuple[Any, int]] = deque()  # one bound on gathered blocks for all teachers
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
    """Raise ValueError, on all ranks, unless all have the teacher whole or all read its weights block by block: else
    some would wait for the others in another collective. Collective."""
    are_streamed = ranks.from_all(hasattr(teacher, "weight_stream"))
    if len(set(are_streamed)) > 1:
        whole = [number for number, is_streamed in enumerate(are_streamed) if not is_streamed]
        raise ValueError(
            f"{role}.checkpoint must be the same on all nodes, found a safetensors file on some ranks and none, or "
            f"weights that must be changed to fit, on ranks {', '.join(map(str, whole))}: fetch it on every node"
        )


def split_of(run: Run) -> BatchSplit:
    """Split the run's global batch over its ranks. Raises ValueError if they cannot share it."""
    return split_batch(run.global_batch_size, world_size=ranks.world_size(), limit=run.micro_batch_size_per_gpu)


def open_split(
    run: Run, split: str, micro_batch_size: int, device: torch.device, *, classes: tuple[str, ...] | None = None
) -> Loader:
    """This rank's loader of `split`, train or val, whose classes must be among those given and get their numbers.
    Raises as `build_loader` does."""
    is_train = split == "train"
    return build_loader(
        replace(run.data, num_workers=run.data.num_workers or num_cpus()),
        split=split,
        augment=run.augment if is_train else None,
        rank=ranks.rank(),
        world_size=ranks.world_size(),
        micro_batch_size=micro_batch_size,
        global_batch_size=run.global_batch_size if is_train else None,
        seed=run.seed,
        classes=classes,
        device=device,
        **({"statistics": build.statistics_of(run.student)} if is_train else {}),
    )


def open_knn(run: Run, micro_batch_size: int, device: torch.device) -> tuple[Loader, Loader] | None:
    """This rank's loaders of data.knn_train and data.knn_val; None where there are none.

    Raises:
        ValueError: these images have no labels, other classes than each other, or are fewer than k-NN takes.
    """
    if not run.data.knn_train:
        return None
    loaders, known = [], ()
    for split, least in (("train", NEIGHBOURS), ("val", 1)):
        key, path = f"data.knn_{split}", getattr(run.data, f"knn_{split}")
        path = str(demo_beton(split)) if path == "demo" else path
        if not Path(path).is_file():
            raise ValueError(f"{key} must be a .beton or demo, found no file {path}: pack the images first")
        images = check_beton(path)
        known = known or images.classes
        if len(images.classes) < 2 or images.num_images < least or set(images.classes) != set(known):
            raise ValueError(
                f"{key} must have labels of two or more classes, those of data.knn_train, and {least} images or more, "
                f"found {images.num_images} images of {len(images.classes)} classes in {path}: give another file"
            )
        shared = {"val": path, "labels": "use", "num_classes": len(known), "classes": "", "max_val_images": 0}
        own = replace(run, data=replace(run.data, **shared))
        loaders.append(open_split(own, "val", micro_batch_size, device, classes=known))
    return tuple(loaders)


def check_teacher_classes(run: Run, name: str, classes: tuple[str, ...]) -> bool:
    """Whether a teacher's classes may be the images', in this order: those that a .json beside its file names, if
    there is one. Raises ValueError if they are not and a term compares its logits."""
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
    """Build student and teacher with their weights, for the `classes` of the data. Raises ValueError if they or their
    weights do not fit."""
    torch.manual_seed(run.seed)  # the same student on every rank
    student = build.build_student(run.student, run.data, classes=classes, **student_needs(run))
    teachers = {
        name: build.build_teacher(teacher, run.data, role=role_of(name), **teacher_needs(run, name))
        for name, teacher in run.teachers.items()
    }
    return fit_models(run, student, teachers)


def student_needs(run: Run) -> dict[str, bool]:
    """What the active terms need of the student, as arguments of `build_student`."""
    return {"needs_blocks": run.losses.needs.blocks("student")}


def teacher_needs(run: Run, name: str) -> dict[str, bool]:
    """What the active terms need of a teacher, as arguments of `build_teacher`."""
    needs = run.losses_of(name).needs
    stream = run.teachers[name].placement != "replica"
    return {"needs_blocks": needs.blocks("teacher"), "needs_logits": needs.logits, "stream": stream}


def fit_models(run: Run, student: nn.Module, teachers: dict[str, nn.Module]) -> Models:
    """Check that the models of a run fit each other. Raises ValueError if they do not."""
    pairs = {}
    for name, teacher in teachers.items():
        config = run.teachers[name]
        sizes = {"image_size": run.data.image_size, "teacher_image_size": config.image_size}
        pairs[name] = check_pair(student, teacher, run.losses_of(name), **sizes)
        if config.keep_tokens:
            check_selection(student, teacher, config.keep_tokens, place=role_of(name))
    return Models(student, teachers, pairs)
