"""What a prediction starts from, of one recipe: measured rows, the models' shapes, and what has to be assumed.

Every number comes with a line that says where it is from; `vitkd_ds.commands.plan.text` prints the lines.
"""

import json
from dataclasses import dataclass, replace

import torch

from vitkd_ds.commands.plan import shapes
from vitkd_ds.commands.plan.hardware import Hardware
from vitkd_ds.commands.plan.measured import MEASURED, Measured, Rate
from vitkd_ds.commands.plan.predict import BACKWARD_PART, CONTEXT_BYTES, EFFICIENCY, LATENCY_S, Inputs
from vitkd_ds.config.run import Run, StudentConfig, TeacherConfig
from vitkd_ds.engine.ds_config import TEACHER_FILES, find_ds_config
from vitkd_ds.models import build
from vitkd_ds.models.distiller import Distiller

TINY_BLOCKS = 12
"""Of the teacher in the rows that say what a shard's hooks cost."""
FETCHES = 8
"""Modules that DeepSpeed enters up to the first block: ours, the patch embedding and its two parts, three that do
nothing, the block."""


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
            "maker's figures are known: run benchmarks/step.py there and add its rows to vitkd_ds/commands/plan/measured.py"
        )
    return MEASURED[hardware.name]


def inputs_of(run: Run, hardware: Hardware) -> Sourced:
    """Look up and compute every input of `vitkd_ds.commands.plan.predict` for a recipe.

    Raises:
        ValueError: nothing was measured on this hardware, or not these models.
    """
    measured = measured_on(hardware)
    teacher_rate, student_rate = _rates(run, measured)
    student, teacher, loss = _on_meta(run)
    host_s, update_s = _host(measured)
    shard_s = measured.shard.micro_batch * (measured.shard.seconds - measured.before_shard.seconds)
    has_vitkd = bool(run.losses.vitkd.weight)
    zero = json.loads(find_ds_config(run.ds_config).read_text()).get("zero_optimization", {})
    checkpointed = run.student.checkpoint_activations
    loss_bytes = shapes.LOSS_BYTES_PER_PATCH * student.patch_embed.num_patches * teacher.embed_dim
    inputs = Inputs(
        teacher_s=teacher_rate.seconds,
        student_s=student_rate.seconds * (4 / 3 if checkpointed else 1),
        loss_s=measured.loss.seconds * (teacher.embed_dim / measured.loss_dim) ** 2 if has_vitkd else 0.0,
        host_s=host_s,
        update_s=update_s,
        shard_host_s=shard_s * len(teacher.blocks) / TINY_BLOCKS,
        flops=shapes.step_flops(student, teacher, loss),
        trained_params=shapes.num_parameters(student) + shapes.num_parameters(loss),
        teacher_params=shapes.num_parameters(teacher),
        gathers=len(teacher.blocks) + 1,
        gathered_params=_gathered_params(teacher),
        activation_bytes=shapes.activation_bytes(student, checkpointed=checkpointed) + has_vitkd * loss_bytes,
        image_bytes=shapes.IMAGE_BYTES_PER_VALUE * 3 * run.data.image_size**2,
        is_compiled=run.compile,
        has_average=run.optim.ema_decay > 0,
        bucket_elements=int(zero.get("reduce_bucket_size", 500_000_000)),
    )
    again = ", x 4/3 for the second forward (assumed)" if checkpointed else ""
    lines = [
        ("teacher", f"{1 / inputs.teacher_s:,.0f} images/s", _row(teacher_rate)),
        ("student", f"{1 / inputs.student_s:,.0f} images/s", _row(student_rate) + again),
        _loss_line(inputs, measured, teacher.embed_dim),
        *_host_lines(inputs, measured),
        ("more for a sharded teacher", f"{1e3 * inputs.shard_host_s:.1f} ms", f"measured, rows {measured.shard.row} "
         f"and {measured.before_shard.row}, x {len(teacher.blocks)}/{TINY_BLOCKS} blocks (assumed)"),
        *_lines(inputs, hardware, ds_config=find_ds_config(run.ds_config).name),
    ]  # fmt: skip
    return Sourced(inputs, lines)


def _gathered_params(teacher: torch.nn.Module) -> int:
    """Of a sharded teacher on a GPU at a time at most, with DeepSpeed's files as shipped or edited.

    Each module that DeepSpeed enters gathers another prefetch bucket ahead, whatever is there already, up to its limit
    on live parameters; when the first block starts, FETCHES modules have.
    """
    whole = shapes.num_parameters(teacher)
    block = shapes.num_parameters(teacher.blocks[0])
    zeros = [json.loads(find_ds_config(f"ds_configs/{file}").read_text())["zero_optimization"]
             for file in TEACHER_FILES.values()]  # fmt: skip
    ahead = [
        min(FETCHES * zero.get("stage3_prefetch_bucket_size", 5e7), zero.get("stage3_max_live_parameters", 1e9))
        for zero in zeros
    ]
    return min(whole, max(block, *map(int, ahead)))


def _loss_line(inputs: Inputs, measured: Measured, width: int) -> tuple[str, str, str]:
    if not inputs.loss_s:
        return "ViTKD loss", "none", "counted: its weight is 0"
    scale = inputs.loss_s / measured.loss.seconds
    source = (
        f"{_row(measured.loss)}, x {1 / scale:.2g} for width {width} (assumed: its convolutions grow with the width "
    )
    return "ViTKD loss", f"{1 / inputs.loss_s:,.0f} images/s", source + "squared)"


def _lines(inputs: Inputs, hardware: Hardware, *, ds_config: str) -> list[tuple[str, str, str]]:
    """What does not come from a measured row."""
    beside = (
        "nothing",
        "counted on a CPU: compiled as a whole, the student hands out all gradients at the end of backward",
    )
    if not inputs.is_compiled:
        beside = (f"{BACKWARD_PART:.0%} of student and loss", "assumed: the backward pass")
    return [
        ("trained parameters", f"{inputs.trained_params:,}", f"counted ({ds_config}: fp32 gradients, bf16 weights on "
         "the wire)"),
        ("teacher's parameters", f"{inputs.teacher_params:,}", "counted"),
        ("of a shard gathered at a time", f"{inputs.gathered_params:,}", "counted: DeepSpeed gathers ahead (see "
         "EXPERIMENTS.md)"),
        ("arithmetic", f"{inputs.flops / 1e9:.1f} GFLOP an image", "counted, matrix products and attention"),
        ("kept for backward", f"{inputs.activation_bytes / 2**20:.1f} MiB an image", "counted, "
         f"{shapes.BLOCK_BYTES_PER_TOKEN} bytes a token and unit of width in a block, {shapes.LOSS_BYTES_PER_PATCH} in "
         "the loss (checked on a CPU)"),
        ("images themselves", f"{inputs.image_bytes / 2**20:.1f} MiB an image", "counted: uint8, mixed in fp32, "
         "normalised twice in bf16"),
        ("speed at other micro-batches", "as measured, an image", "assumed: a GPU is as efficient as at 256 images"),
        ("augmentation on the GPU", "left out", "not measured"),
        ("links", f"{hardware.nvlink_gb_per_s:g} / {hardware.network_gb_per_s:g} / {hardware.pcie_gb_per_s:g} GB/s",
         f"NVLink, network and PCIe of a GPU: {hardware.source}"),
        ("of which used", f"{EFFICIENCY:.0%}, {1e6 * LATENCY_S:.0f} us to start", "assumed"),
        ("reductions run beside", *beside),
        ("context, fragmentation", f"{CONTEXT_BYTES / 2**30:.1f} GiB", "assumed"),
    ]  # fmt: skip


def _alone(measured: Measured) -> list[Rate]:
    """The parts of the measured whole step."""
    return [measured.teacher[measured.step_teacher], measured.student[measured.step_student], measured.loss]


def _host(measured: Measured) -> tuple[float, float]:
    """Seconds of the measured whole step that its parts alone do not take: a micro-batch's, and the update's."""
    update_s = measured.step_parts_ms[-1] / 1e3
    alone_s = sum(part.seconds for part in _alone(measured))
    return measured.step.micro_batch * (measured.step.seconds - alone_s) - update_s, update_s


def _host_lines(inputs: Inputs, measured: Measured) -> list[tuple[str, str, str]]:
    rows = ", ".join(part.row for part in _alone(measured))
    step, same = f"measured, row {measured.step.row}", "(assumed the same for all pairs and micro-batches)"
    return [
        ("fixed time a micro-batch", f"{1e3 * inputs.host_s:.1f} ms", f"{step}, the nearest to the shipped settings, "
         f"less {rows} and the update {same}"),
        ("fixed time a step", f"{1e3 * inputs.update_s:.1f} ms", f"{step}, its parts: the update, with what "
         f"the GPU computes in it {same}"),
    ]  # fmt: skip


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
        student = build.build_student(replace(run.student, init=""), run.data)
        teacher = build.build_teacher(replace(run.teacher, checkpoint="random"), run.data)
        blocks = run.losses.vitkd.blocks if run.losses.vitkd.weight else ()
        distiller = Distiller(student, run.losses, build.check_pair(student, teacher, blocks=blocks))
        loss = distiller.vitkd if run.losses.vitkd.weight else torch.nn.Identity()
    return student, teacher, loss
