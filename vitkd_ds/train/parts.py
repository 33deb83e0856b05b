"""The parts of a run on one rank: data opened, models built, both engines started, after all checks on files, models
and settings. `vitkd-ds doctor` calls the same functions, one by one."""

import logging
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import description_beside
from vitkd_ds.data.crops import val_interpolation
from vitkd_ds.data.images import check_classes
from vitkd_ds.data.loader import Loader, build_loader
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import num_cpus
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.schedule import BatchSplit, Schedule, check_warmup, make_schedule, split_batch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """Student and teacher on the CPU in fp32, the same on every rank."""

    student: nn.Module
    teacher: nn.Module | None
    pair: build.PairInfo | None
    """Widths and grids of both, for the losses; None where no term compares tokens."""


@dataclass(frozen=True)
class Parts:
    """The parts of one run on one rank."""

    run: Run
    schedule: Schedule
    device: torch.device
    engine: StudentEngine
    teacher: Teacher | None
    export_model: nn.Module
    """An fp32 copy of the student, into which the exported weights are loaded to be evaluated."""
    normalization: Normalization
    """The student's."""
    teacher_answers: bool = False
    """Whether the teacher has logits for the classes of the data, so that its agreement can be evaluated."""
    shares_inputs: bool = False
    """Whether the teacher takes the student's normalised images: the same mean, std and dtype."""
    train_loader: Loader | None = None
    """None, like val_loader, in the doctor, whose steps see random images."""
    val_loader: Loader | None = None

    def student_description(self) -> dict[str, Any]:
        """student.json: how to rebuild the student with timm and feed it."""
        data, classes = self.run.data, list(self.train_loader.classes)
        made, normalization = build.model_args_of(self.run.student, data), asdict(self.normalization)
        interpolation = val_interpolation(data.interpolation)
        # What timm's own helpers, such as resolve_model_data_config, must know of the rebuilt model.
        made["args"]["pretrained_cfg_overlay"] = normalization | {
            "input_size": [3, data.image_size, data.image_size],
            "crop_pct": data.val_crop_fraction,
            "interpolation": interpolation,
            "num_classes": len(classes),
            "label_names": classes,
        }
        return made | {
            "normalization": normalization,
            "image_size": data.image_size,
            "val_crop_fraction": data.val_crop_fraction,
            "interpolation": interpolation,
            "classes": classes,
            "weights": "ema" if self.run.optim.ema_decay else "raw",
            "recipe": self.run.recipe,
        }


def build_parts(run: Run, device: torch.device) -> Parts:
    """Check the data, build loaders, models and engines. Collective.

    Raises:
        ValueError: whatever does not fit; the message names the key or file.
    """
    split = split_of(run)
    ds_config = student_ds_config(run, **asdict(split))
    train_loader = open_split(run, "train", split.micro_batch_size, device)
    val_loader = open_split(run, "val", split.micro_batch_size, device, classes=train_loader.classes)
    knows_classes = check_teacher_classes(run, train_loader.classes)
    if run.teacher and run.teacher.checkpoint == "random":
        logger.info("DEBUG RUN: the teacher has random weights, nothing can be learned from it")
    steps_per_epoch = train_loader.steps_per_epoch
    schedule = make_schedule(run, steps_per_epoch=steps_per_epoch, accumulation_steps=split.accumulation_steps)
    check_warmup(run, schedule)
    parts = start_engines(run, ds_config, build_models(run, train_loader.classes), schedule, device)
    answers = parts.teacher_answers and knows_classes
    return replace(parts, teacher_answers=answers, train_loader=train_loader, val_loader=val_loader)


def start_engines(
    run: Run, ds_config: dict[str, Any], models: Models, schedule: Schedule, device: torch.device
) -> Parts:
    """Start both engines, which take the models: parts without loaders, which suffice for a step. Collective."""
    micro = ds_config["train_micro_batch_size_per_gpu"]
    # Before the engine takes the student, which it rounds to bf16 and moves to the device.
    export_model = deepcopy(models.student).to(device).eval()
    engine = StudentEngine(Distiller(models.student, run.losses, models.pair), run, ds_config)
    answers, normalization = bool(models.teacher and models.teacher.num_classes), build.normalization_of(models.student)
    teacher = Teacher(models.teacher, run, device=device, micro_batch_size=micro) if run.teacher else None
    shares = teacher is not None and (teacher.normalization, teacher.dtype) == (normalization, engine.dtype)
    return Parts(run, schedule, device, engine, teacher, export_model, normalization, answers, shares)


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
        compile=is_train and run.compile and device.type != "cpu",  # on a CPU the compiled augmentation is slower
    )


def check_teacher_classes(run: Run, classes: tuple[str, ...]) -> bool:
    """Whether the teacher's classes may be the images', in this order: those that a .json beside its file names, if
    there is one. Raises ValueError if they are not and a term compares logits."""
    if run.teacher is None or run.teacher.checkpoint in ("hub", "random"):
        return run.teacher is not None
    file = build.teacher_file(run.teacher)
    described = description_beside(file)
    if "classes" not in described:
        return True
    if run.losses.needs_logits:
        check_classes(classes, tuple(described["classes"]), source=str(file.with_suffix(".json")))
    return classes == tuple(described["classes"])


def build_models(run: Run, classes: tuple[str, ...] | None = None) -> Models:
    """Build student and teacher with their weights, for the `classes` of the data. Raises ValueError if they or their
    weights do not fit."""
    torch.manual_seed(run.seed)  # the same student on every rank
    student = build.build_student(run.student, run.data, classes=classes)
    teacher = build.build_teacher(run.teacher, run.data, **teacher_needs(run)) if run.teacher else None
    return fit_models(run, student, teacher)


def teacher_needs(run: Run) -> dict[str, bool]:
    """What the active terms need of the teacher, as arguments of `build_teacher`."""
    return {"needs_tokens": bool(run.losses.tapped_blocks), "needs_logits": run.losses.needs_logits}


def fit_models(run: Run, student: nn.Module, teacher: nn.Module | None) -> Models:
    """Check that the models of a run fit each other. Raises ValueError if they do not."""
    pair = build.check_pair(student, teacher, blocks=run.losses.tapped_blocks) if teacher is not None else None
    return Models(student, teacher, pair)
