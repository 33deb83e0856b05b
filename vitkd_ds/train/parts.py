"""A run made concrete on one rank: data checked and opened, models built, both engines started.

Whatever can be wrong with files, models or settings is said here, before the first image is trained on.
"""

import json
import sys
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from vitkd_ds.config.run import Run
from vitkd_ds.data.images import check_classes
from vitkd_ds.data.loader import Loader, build_loader
from vitkd_ds.data.order import micro_batch_size
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import StudentEngine, student_ds_config
from vitkd_ds.engine.teacher import Teacher
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train.schedule import Plan, make_plan


@dataclass(frozen=True)
class Job:
    """The parts of one run on one rank."""

    run: Run
    plan: Plan
    device: torch.device
    train_loader: Loader
    val_loader: Loader
    engine: StudentEngine
    teacher: Teacher | None
    export_model: nn.Module
    """An fp32 copy of the student, into which the exported weights are loaded to be evaluated."""
    normalization: Normalization
    """The student's."""

    def student_description(self) -> dict[str, Any]:
        """student.json: how to rebuild the student with timm and feed it."""
        return build.model_args_of(self.run.student, self.run.data) | {
            "normalization": asdict(self.normalization),
            "image_size": self.run.data.image_size,
            "val_crop_fraction": self.run.data.val_crop_fraction,
            "interpolation": self.run.data.interpolation,
            "classes": list(self.train_loader.classes),
            "weights": "ema" if self.run.optim.ema_decay else "raw",
            "recipe": self.run.recipe,
        }


def build_job(run: Run, device: torch.device, saved_layout: dict[str, Any] | None = None) -> Job:
    """Check the data, build models, loaders and engines. All ranks must call it.

    Args:
        saved_layout: see `vitkd_ds.engine.student.student_ds_config`.

    Raises:
        ValueError: whatever does not fit; the message names the key or file.
    """
    share = {"rank": ranks.rank(), "world_size": ranks.world_size()}
    data = replace(run.data, num_workers=run.data.num_workers or ranks.num_cpus())
    limit, whole = run.micro_batch_size_per_gpu, run.global_batch_size
    micro = micro_batch_size(world_size=ranks.world_size(), limit=limit, global_batch_size=whole)
    accumulation = whole // (micro * ranks.world_size())
    sizes = {"micro_batch_size": micro, "accumulation_steps": accumulation}
    ds_config = student_ds_config(run, **sizes, saved_layout=saved_layout)
    shared = {"micro_batch_size": micro, "device": device, "seed": run.seed}
    train_loader = build_loader(
        data,
        split="train",
        augment=run.augment,
        global_batch_size=whole,
        compile=run.compile and device.type != "cpu",
        **shared,
        **share,
    )
    val_loader = build_loader(data, split="val", classes=train_loader.classes, **shared, **share)

    if run.teacher and run.teacher.checkpoint not in ("hub", "random"):
        beside = build.teacher_file(run.teacher).with_suffix(".json")
        if beside.is_file() and "classes" in (described := json.loads(beside.read_text())):
            check_classes(train_loader.classes, tuple(described["classes"]), source=str(beside))

    torch.manual_seed(run.seed)  # the same student on every rank
    student = build.build_student(run.student, run.data)
    teacher_model = build.build_teacher(run.teacher, run.data) if run.teacher else None
    blocks = run.losses.vitkd.blocks if run.losses.vitkd.weight else (0,)
    pair = build.check_pair(student, teacher_model, blocks=blocks) if run.teacher else None
    export_model = deepcopy(student).to(device).eval()
    distiller = Distiller(student, run.losses, pair)
    engine = StudentEngine(distiller, run, ds_config, distiller.parameter_groups(run.optim.weight_decay))
    return Job(
        run=run,
        plan=make_plan(run, steps_per_epoch=train_loader.steps_per_epoch, accumulation_steps=accumulation),
        device=device,
        train_loader=train_loader,
        val_loader=val_loader,
        engine=engine,
        teacher=_build_teacher(run, teacher_model, blocks, device, micro) if run.teacher else None,
        export_model=export_model,
        normalization=build.normalization_of(student),
    )


def _build_teacher(
    run: Run, model: nn.Module, blocks: tuple[int, ...], device: torch.device, micro_batch_size: int
) -> Teacher:
    if run.teacher.checkpoint == "random" and ranks.rank() == 0:
        print("DEBUG RUN: the teacher has random weights, nothing can be learned from it", file=sys.stderr)
    return Teacher(
        model,
        run.teacher,
        blocks=blocks,
        device=device,
        micro_batch_size=micro_batch_size,
        compile=run.compile,
    )
