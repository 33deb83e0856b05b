"""Settings that depend on the number of ranks, and the two models with their weights.

Weights that would have to be downloaded are not: a node often cannot, and several GB would not fit in two minutes.
Where none are at hand, random ones stand in, so that the engines can still be tried.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, error, ok, warning
from vitkd_ds.config.run import DataConfig, StudentConfig, TeacherConfig
from vitkd_ds.data.order import micro_batch_size
from vitkd_ds.engine import ranks
from vitkd_ds.engine.student import student_ds_config
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
"""What timm downloads, by preference."""


def check_settings(patient: Patient) -> list[Row]:
    """How the ranks share a global batch, and the DeepSpeed file. Local: the same on all ranks."""
    run, world_size = patient.run, ranks.world_size()
    limit, whole = run.micro_batch_size_per_gpu, run.global_batch_size
    micro = micro_batch_size(world_size=world_size, limit=limit, global_batch_size=whole)
    accumulation = whole // (micro * world_size)

    def read() -> dict[str, Any]:
        return student_ds_config(run, micro_batch_size=micro, accumulation_steps=accumulation)

    patient.ds_config = ranks.together(read)
    patient.micro_batch_size = micro
    found = f"{whole} images per update = {world_size} ranks x {accumulation} micro-batches x {micro} images"
    if accumulation > 1 and micro < limit / 2:
        advice = "choose a --global_batch_size that more ranks can share, or another number of ranks"
        return [warning("settings", f"{found}, though micro_batch_size_per_gpu allows {limit}", advice)]
    return [ok("settings", found)]


def check_models(patient: Patient) -> list[Row]:
    """Build both models, with their weights where those are at hand. Collective."""
    run = patient.run
    student_row, student = load_student(run.student, run.data)
    rows, teacher, is_trained = [student_row], None, False
    if run.teacher:
        teacher_row, teacher, is_trained = load_teacher(run.teacher, run.data)
        rows.append(teacher_row)
    is_complete = student is not None and (teacher is not None or not run.teacher)
    if not ranks.all_true(is_complete, patient.device):
        return rows
    if run.teacher:
        try:
            patient.pair = build.check_pair(student, teacher, blocks=tapped_blocks(patient))
        except ValueError as caught:
            return [*rows, error("models", str(caught))]
    patient.student, patient.teacher_model = student, teacher
    patient.is_teacher_trained = ranks.all_true(is_trained, patient.device)
    module = Distiller(student, run.losses, patient.pair)
    patient.num_trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return rows


def tapped_blocks(patient: Patient) -> tuple[int, ...]:
    """Blocks whose tokens the losses need, as the job has them."""
    vitkd = patient.run.losses.vitkd
    return vitkd.blocks if vitkd.weight else (0,)


def load_student(config: StudentConfig, data: DataConfig) -> tuple[Row, nn.Module | None]:
    """A row and the student, None if it cannot be built; weights of the hub are only looked for."""
    try:
        student = build.build_student(replace(config, init="") if config.init == "hub" else config, data)
    except (OSError, ValueError) as caught:
        return error("student", str(caught)), None
    if config.init == "hub":
        hub_id = student.pretrained_cfg["hf_hub_id"]
        return _hub_row("student", config.model, hub_id, cached_file(hub_id)), student
    weights = config.init or "random weights"
    return ok("student", f"{config.model}, {_millions(student)} parameters, {weights}"), student


def load_teacher(config: TeacherConfig, data: DataConfig) -> tuple[Row, nn.Module | None, bool]:
    """A row, the teacher, and whether it has its trained weights; a random one stands in where they do not load.

    None if not even the architecture can be built.
    """
    stand_in = replace(config, checkpoint="random")
    try:
        file = None
        if config.checkpoint == "hub":
            with torch.device("meta"):
                hub_id = build.build_teacher(stand_in, data).pretrained_cfg["hf_hub_id"]
            file = cached_file(hub_id)
            if not file:
                return _hub_row("teacher", config.model, hub_id, file), build.build_teacher(stand_in, data), False
        teacher = build.build_teacher(replace(config, checkpoint=file) if file else config, data)
    except (OSError, ValueError) as caught:
        return error("teacher", str(caught)), _built(stand_in, data), False
    is_trained = config.checkpoint != "random"
    weights = file or (str(build.teacher_file(config)) if is_trained else "random weights, as this is a debug run")
    return ok("teacher", f"{config.model}, {_millions(teacher)} parameters, {weights}"), teacher, is_trained


def _built(config: TeacherConfig, data: DataConfig) -> nn.Module | None:
    try:
        return build.build_teacher(config, data)
    except ValueError:
        return None


def cached_file(hub_id: str) -> str | None:
    """The weights of a model of the hub in this node's cache; nothing is asked of the network."""
    from huggingface_hub import try_to_load_from_cache  # timm's own requirement

    found = (try_to_load_from_cache(hub_id, name) for name in HUB_FILES)
    return next((file for file in found if isinstance(file, str)), None)


def _hub_row(role: str, model: str, hub_id: str, file: str | None) -> Row:
    if file:
        return ok(role, f"{model}, weights of the hub in {file}")
    fetch = f"python -c \"import timm; timm.create_model('{model}', pretrained=True)\""
    return warning(
        role,
        f"weights of {hub_id} are not in this node's cache: train would download them, which the doctor does not",
        f"{fetch} where there is a network, with the HF_HOME that the nodes share; or give the file",
    )


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M"
