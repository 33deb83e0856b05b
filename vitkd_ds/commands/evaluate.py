"""Exported students: find one, rebuild it with timm, evaluate it, copy it out of a run. One process, no DeepSpeed."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitkd_ds.checkpoint.load import DESCRIPTION, STUDENT, pointer
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import DataConfig, Run, StudentConfig, TeacherConfig
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.train.evaluate import evaluate


def find_student(source: str | Path) -> Path:
    """The folder with student.safetensors and student.json that `source` means: itself, or the file's folder.

    Raises:
        ValueError: one of the two is not there.
    """
    source = Path(source)
    folder = source.parent if source.name == STUDENT else source
    for name in (STUDENT, DESCRIPTION):
        if not (folder / name).is_file():
            raise ValueError(f"{source} must be a run, a checkpoint or an exported student, found no {folder / name}")
    return folder


def evaluate_exported(
    student: str,
    *,
    val: str = "",
    teacher: str = "",
    teacher_checkpoint: str = "",
    micro_batch_size: int = 64,
) -> dict[str, float]:
    """Evaluate an exported student in fp32 on this machine's first device.

    Args:
        student: what `find_student` takes.
        val: a .beton; "" takes the run's own.
        teacher: timm name; "" takes the run's teacher, and none outside a run folder.
        teacher_checkpoint: its weights, a local file or hub; "" is hub.
        micro_batch_size: images per forward.

    Returns:
        See `vitkd_ds.train.evaluate.evaluate`.

    Raises:
        ValueError: files or models that do not fit, or no validation data.
    """
    folder = find_student(student)
    description = json.loads((folder / DESCRIPTION).read_text())
    run = _run_of(folder)
    val = val or (run.data.val if run else "")
    if not val:
        raise ValueError(f"validation data must be known, found no config.json beside {folder}: give --val FILE")
    data = DataConfig(
        train="",
        val=val,
        image_size=description["image_size"],
        num_classes=len(description["classes"]),
        val_crop_fraction=description["val_crop_fraction"],
        interpolation=description["interpolation"],
        max_val_images=run.data.max_val_images if run else 0,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model_args = {k: v for k, v in description["args"].items() if k not in ("num_classes", "img_size")}
    config = StudentConfig(model=description["model"], model_args=model_args, init=str(folder / STUDENT))
    model = build.build_student(config, data).to(device)
    teacher_config = run.teacher if run and run.teacher and run.teacher.checkpoint != "random" else None
    if teacher:
        teacher_config = TeacherConfig(model=teacher, checkpoint=teacher_checkpoint or "hub")
    elif teacher_checkpoint:
        raise ValueError("--teacher_checkpoint needs --teacher, the timm name of its model")
    loader = build_loader(data, split="val", micro_batch_size=micro_batch_size, device=device)
    if list(loader.classes) != description["classes"]:
        raise ValueError(f"{val} must have the student's classes in order, found others than in {folder / DESCRIPTION}")
    return evaluate(
        model,
        loader,
        normalization=build.normalization_of(model),
        teacher=_teacher_features(teacher_config, data, device) if teacher_config else None,
    )


def _run_of(folder: Path) -> Run | None:
    """The run whose folder, checkpoint or export `folder` is."""
    for candidate in (folder, folder.parent.parent):
        if (candidate / "config.json").is_file():
            return from_dict(Run, json.loads((candidate / "config.json").read_text())["run"])
    return None


def _teacher_features(config: TeacherConfig, data: DataConfig, device: torch.device) -> Any:
    model = build.build_teacher(replace(config, placement="replica"), data).to(device)
    normalization = build.normalization_of(model)

    def features(images_BCHW: Tensor) -> Features:
        return tap_features(model, normalization.apply(images_BCHW, torch.float32), (0,))

    return features


def export_student(source: str, destination: str, *, which: str = "last", half: bool = False) -> Path:
    """Copy a student out of a run.

    Args:
        source: a run folder or a checkpoint.
        destination: a folder that does not exist yet.
        which: of a run folder, its last or its best checkpoint.
        half: store fp16, half the size; the packaged teacher is made so.

    Returns:
        The new folder.

    Raises:
        ValueError: nothing to export, or `destination` exists.
    """
    if which not in ("last", "best"):
        raise ValueError(f"--which must be last or best, found {which}")
    folder, target = Path(source), Path(destination)
    if (folder / "checkpoints").is_dir():
        tag = pointer(folder / "checkpoints", "latest" if which == "last" else "best")
        if not tag:
            raise ValueError(f"{folder} must have a {which} checkpoint, found none yet")
        folder = folder / "checkpoints" / tag
    folder = find_student(folder)
    if target.exists():
        raise ValueError(f"{target} must not exist yet, so that nothing is overwritten: give another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    weights = load_file(folder / STUDENT)
    save_file({name: w.half() for name, w in weights.items()} if half else weights, temporary / STUDENT)
    shutil.copy2(folder / DESCRIPTION, temporary / DESCRIPTION)
    temporary.chmod(0o755)
    temporary.rename(target)
    return target
