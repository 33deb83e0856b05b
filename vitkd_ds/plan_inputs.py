"""What a prediction starts from, of one recipe: measured rows, the models' shapes, and what has to be assumed.

Every number comes with a line that says where it is from; `vitkd_ds.plan_text` prints the lines.
"""

import json
from dataclasses import dataclass, replace

import torch

from vitkd_ds import models, shapes
from vitkd_ds.config import Run, StudentConfig, TeacherConfig
from vitkd_ds.distiller import Distiller
from vitkd_ds.ds_config import find_ds_config
from vitkd_ds.hardware import Hardware
from vitkd_ds.measured import MEASURED, Measured, Rate
from vitkd_ds.plan import BACKWARD_PART, CONTEXT_BYTES, EFFICIENCY, LATENCY_S, Inputs


@dataclass(frozen=True)
class Sourced:
    """Inputs, and a line for each: what, value, measured or assumed."""

    inputs: Inputs
    lines: list[tuple[str, str, str]]


def measured_on(hardware: Hardware) -> Measured:
    """What was measured on this kind of GPU.

    Raises:
        ValueError: nothing was.
    """
    if hardware.name not in MEASURED:
        raise ValueError(
            f"--hardware must have measured speeds ({', '.join(MEASURED)}), found {hardware.name}, of which only the "
            "maker's figures are known: run benchmarks/step.py there and add its rows to vitkd_ds/measured.py"
        )
    return MEASURED[hardware.name]


def inputs_of(run: Run, hardware: Hardware) -> Sourced:
    """Look up and compute every input of `vitkd_ds.plan` for a recipe.

    Raises:
        ValueError: nothing was measured on this hardware, or not these models.
    """
    measured = measured_on(hardware)
    teacher_rate, student_rate = _rates(run, measured)
    student, teacher, loss = _on_meta(run)
    host_s, host_line = _host(measured)
    shard_s = measured.shard.micro_batch * (measured.shard.seconds - measured.before_shard.seconds)
    tiny_blocks = 12
    scale = (teacher.embed_dim / measured.loss_dim) ** 2
    zero = json.loads(find_ds_config(run.ds_config).read_text()).get("zero_optimization", {})
    checkpointed = run.student.checkpoint_activations
    loss_bytes = shapes.LOSS_BYTES_PER_PATCH * student.patch_embed.num_patches * teacher.embed_dim
    inputs = Inputs(
        teacher_s=teacher_rate.seconds,
        student_s=student_rate.seconds * (4 / 3 if checkpointed else 1),
        loss_s=measured.loss.seconds * scale,
        host_s=host_s,
        shard_host_s=shard_s * len(teacher.blocks) / tiny_blocks,
        flops=shapes.step_flops(student, teacher, loss),
        trained_params=shapes.num_parameters(student) + shapes.num_parameters(loss),
        teacher_params=shapes.num_parameters(teacher),
        gathers=len(teacher.blocks) + 1,
        activation_bytes=shapes.activation_bytes(student, checkpointed=checkpointed) + loss_bytes,
        has_average=run.optim.ema_decay > 0,
        bucket_elements=int(zero.get("reduce_bucket_size", 500_000_000)),
    )
    again = ", x 4/3 for the second forward (assumed)" if checkpointed else ""
    lines = [
        ("teacher", f"{1 / inputs.teacher_s:,.0f} images/s", _row(teacher_rate)),
        ("student", f"{1 / inputs.student_s:,.0f} images/s", _row(student_rate) + again),
        ("ViTKD loss", f"{1 / inputs.loss_s:,.0f} images/s", f"{_row(measured.loss)}, x {1 / scale:.2g} for "
         f"width {teacher.embed_dim} (assumed: its convolutions grow with the width squared)"),
        ("fixed time a micro-batch", f"{1e3 * host_s:.1f} ms", host_line),
        ("more for a sharded teacher", f"{1e3 * inputs.shard_host_s:.1f} ms", f"measured, rows {measured.shard.row} "
         f"and {measured.before_shard.row}, x {len(teacher.blocks)}/{tiny_blocks} blocks (assumed)"),
        ("trained parameters", f"{inputs.trained_params:,}", f"counted ({find_ds_config(run.ds_config).name}: fp32 "
         "gradients, bf16 weights on the wire)"),
        ("teacher's parameters", f"{inputs.teacher_params:,}", "counted"),
        ("arithmetic", f"{inputs.flops / 1e9:.1f} GFLOP an image", "counted, matrix products and attention"),
        ("kept for backward", f"{inputs.activation_bytes / 2**20:.1f} MiB an image", "assumed: 34 bytes a token and "
         "unit of width in a block, 30 in the loss"),
        ("speed at other micro-batches", "as measured, an image", "assumed: a GPU is as efficient as at 256 images"),
        ("links", f"{hardware.nvlink_gb_per_s:g} / {hardware.network_gb_per_s:g} / {hardware.pcie_gb_per_s:g} GB/s",
         f"NVLink, network and PCIe of a GPU: {hardware.source}"),
        ("of which used", f"{EFFICIENCY:.0%}, {1e6 * LATENCY_S:.0f} us to start", "assumed"),
        ("reductions run beside", f"{BACKWARD_PART:.0%} of student and loss", "assumed: the backward pass"),
        ("context, fragmentation", f"{CONTEXT_BYTES / 2**30:.1f} GiB", "assumed"),
    ]  # fmt: skip
    return Sourced(inputs, lines)


def _host(measured: Measured) -> tuple[float, str]:
    """Seconds of the measured whole step that its three parts alone do not take."""
    parts = (measured.teacher[measured.step_teacher], measured.student[measured.step_student], measured.loss)
    host_s = measured.step.micro_batch * (measured.step.seconds - sum(part.seconds for part in parts))
    rows = ", ".join(part.row for part in parts)
    return host_s, (
        f"measured, row {measured.step.row}, the nearest to the shipped settings, less {rows} (assumed the same for "
        "all pairs and micro-batches)"
    )


def _row(rate: Rate) -> str:
    return f"measured, row {rate.row}"


def _rates(run: Run, measured: Measured) -> tuple[Rate, Rate]:
    def find(config: StudentConfig | TeacherConfig | None, rates: dict[str, Rate], role: str) -> Rate:
        model = config.model.partition(".")[0] if config else "none"
        if model not in rates or config.model_args or run.data.image_size != 224:
            found = f"{model} {dict(config.model_args) if config and config.model_args else ''}".strip()
            raise ValueError(
                f"plan needs a {role} that was measured at 224 pixels ({', '.join(rates)}), found {found} at "
                f"{run.data.image_size} pixels in recipe {run.recipe}: choose an ImageNet recipe with --recipe"
            )
        return rates[model]

    return find(run.teacher, measured.teacher, "teacher"), find(run.student, measured.student, "student")


def _on_meta(run: Run) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Student, teacher and losses without memory."""
    with torch.device("meta"):
        student = models.build_student(replace(run.student, init=""), run.data)
        teacher = models.build_teacher(replace(run.teacher, checkpoint="random"), run.data)
        blocks = run.losses.vitkd.blocks if run.losses.vitkd.weight else ()
        distiller = Distiller(student, run.losses, models.check_pair(student, teacher, blocks=blocks))
        loss = distiller.vitkd if run.losses.vitkd.weight else torch.nn.Identity()
    return student, teacher, loss
