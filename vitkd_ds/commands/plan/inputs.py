"""Collect the inputs of a prediction with their sources: measured speeds, model shapes and assumptions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitkd_ds.commands.plan import hardware as known
from vitkd_ds.commands.plan import shapes
from vitkd_ds.commands.plan.hardware import Hardware, Rate
from vitkd_ds.commands.plan.predict import BACKWARD_PART, CONTEXT_BYTES, EFFICIENCY, LATENCY_S, Inputs
from vitkd_ds.config.losses import TERMS
from vitkd_ds.config.run import Run
from vitkd_ds.config.teachers import role_of, teacher_of
from vitkd_ds.config.term import Term
from vitkd_ds.data.beton.format import SUFFIX, read_beton
from vitkd_ds.data.classes import is_class_folder, packed_path
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.data.sources import open_source
from vitkd_ds.data.subset import use_part
from vitkd_ds.engine.ds_config import TEACHER_FILES, find_ds_config, is_bf16, most_blocks
from vitkd_ds.engine.optimizers.base import state_bytes
from vitkd_ds.models.build import build_student, build_teacher
from vitkd_ds.models.cost import forward_flops, keep_patches, num_parameters, term_cost
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.pair import check_pair

FETCHES = 8
"""Number of modules that DeepSpeed enters until the first block starts: the wrapper around the teacher, the patch
embedding and its two submodules, three identities, and the block."""
IMAGENET_IMAGES = 1_281_167
MEASURED_COST = next(term.cost for term in TERMS.values() if term.cost)
"""Cost of ViTKD, the only loss term that was timed."""
ASSUMED_MFU = {"teacher": 0.4, "student": 0.25, "loss": 0.25}
"""Assumed fraction of the GPU's peak for models and losses that were not measured.

Measured teachers reach 27 to 46 % (rows C1 to C3) and measured students 10 to 36 % (rows C4 to C6). Larger models reach
a higher fraction. ViTKD is the only measured loss."""


@dataclass(frozen=True)
class TrainImages:
    """Number and mean size of the training images."""

    num_images: int
    bytes_per_image: float
    """Mean size of the stored images, in bytes."""
    name: str
    """Path of the .beton or folder with the counted images, or the name of the assumed data set."""
    bytes_source: str
    """Text that tells where `bytes_per_image` is from."""


def train_images(run: Run) -> TrainImages:
    """Return number and mean size of the training images; ImageNet-1k if data.train is no .beton or class folder.

    Raises:
        ValueError: the .beton or folder is invalid or does not fit the run.
    """
    path = demo_beton("train") if run.data.train == "demo" else Path(run.data.train)
    if is_class_folder(str(path)) and packed_path(path).is_file():
        path = packed_path(path)
    if path.suffix == SUFFIX and path.is_file():
        info, stored, labels = read_beton(path)
        classes, sizes = info.classes, stored["size"]
    elif is_class_folder(str(path)):
        source = open_source(path)
        classes, sizes, labels = source.classes, source.sizes, source.labels
    else:
        where = f"measured, row {known.LOADER.row}: ImageNet"
        return TrainImages(IMAGENET_IMAGES, known.LOADER_BYTES, "ImageNet-1k's training set", where)
    *_, chosen = use_part(run.data, labels, classes, path=str(path), split="train")
    return TrainImages(len(chosen), float(sizes[chosen].mean()), str(path), f"counted: {path}")


def inputs_of(run: Run, hardware: Hardware) -> Inputs:
    """Return all inputs of a prediction. Raise ValueError if the student has no blocks or its ds_config sets fp32."""
    zero = _ds_config(run.ds_config)["zero_optimization"]
    if not is_bf16(_ds_config(run.ds_config)):
        raise ValueError(f"plan supports only bf16 students, but {run.ds_config} sets fp32. Remove --ds_config.")
    student, teachers = _models(run)
    size = run.data.image_size
    sizes = {name: config.image_size or size for name, config in run.teachers.items()}
    rates = {}
    pairs = {}
    for name, config in run.teachers.items():
        measured = {} if config.keep_tokens else known.TEACHERS
        rates[name] = _rate("teacher", config, teachers[name], sizes[name], measured, hardware)
        pairs[name] = check_pair(
            student, teachers[name], run.losses_of(name), image_size=size, teacher_image_size=sizes[name]
        )
    student_rate, student_source = _rate("student", run.student, student, size, known.STUDENTS, hardware)
    with torch.device("meta"):
        distiller = Distiller(student, run.losses, pairs)
    loss = None
    loss_bytes = 0
    loss_s = 0.0
    for name, term in _measured(run).items():
        loss = distiller.parts[name]
        pair = pairs[teacher_of(term, pairs)]
        loss_bytes = term.cost.bytes_per_patch * student.patch_embed.num_patches * pair.teacher_dim
        loss_s = hardware.slower * known.LOSS.seconds * (pair.teacher_dim / known.LOSS_DIM) ** 2
    others_flops, others_bytes = _others_cost(run, pairs)
    gathered = {name: _gathered_modules(teacher) for name, teacher in teachers.items()}
    num_gathered = sum(map(len, gathered.values()))
    host_s, shard_host_s = _host_seconds(num_gathered)
    checkpointed = run.student.checkpoint_activations
    others_s = others_flops / (ASSUMED_MFU["loss"] * hardware.peak_tflops * 1e12)
    step_flops = shapes.step_flops(student, [(teachers[name], sizes[name]) for name in teachers], loss, image_size=size)
    bytes_per_value = shapes.IMAGE_BYTES_PER_VALUE + shapes.MORE_BYTES_PER_VALUE * max(0, len(teachers) - 1)
    return Inputs(
        teacher_s=sum(rate.seconds for rate, _ in rates.values()),
        # Checkpointing repeats the forward, which is a third of forward and backward.
        student_s=student_rate.seconds * (4 / 3 if checkpointed else 1),
        loss_s=loss_s + others_s,
        others_s=others_s,
        host_s=host_s,
        update_s=known.UPDATE_MS / 1e3 * known.FLAT_UPDATE,
        shard_host_s=shard_host_s,
        flops=step_flops + others_flops,
        trained_params=num_parameters(distiller),
        student_params=num_parameters(student),
        teacher_params=sum(map(num_parameters, teachers.values())),
        gathers=max(1, num_gathered + len(teachers)),
        # Teachers run one after another, so the largest one counts.
        gathered_params=max([0, *(_gathered_params(teachers[name], gathered[name], "shard") for name in teachers)]),
        offloaded_params=max([0, *(_gathered_params(teachers[name], gathered[name], "offload") for name in teachers)]),
        activation_bytes=shapes.activation_bytes(student, checkpointed=checkpointed) + loss_bytes + others_bytes,
        image_bytes=bytes_per_value * 3 * max([size, *sizes.values()]) ** 2,
        is_compiled=run.is_compiled,
        state_bytes=state_bytes(distiller, run.optim),
        bucket_elements=int(zero.get("reduce_bucket_size", 500_000_000)),
        teacher_source="; ".join(source for _, source in rates.values()),
        student_source=student_source,
    )


def _host_seconds(num_gathered: int) -> tuple[float, float]:
    """Return two times per micro-batch in seconds: launches not hidden by GPU work, and hooks of gathered modules."""
    # The step takes longer than its separately measured components because of the update, launches and hooks.
    beyond_s = known.STEP_IMAGES * (known.STEP.seconds - sum(part.seconds for part in known.STEP_PARTS))
    beyond_s -= known.UPDATE_MS / 1e3
    hooks_s = known.STEP_IMAGES * (known.SHARD.seconds - known.REPLICA.seconds)
    # Measured with one parameter per weight. Flat parameters are assumed to shorten the times as much as on a CPU.
    hooks_s *= known.FLAT_GATHERS * num_gathered / known.SHARD_BLOCKS
    return beyond_s * known.FLAT_BACKWARD, hooks_s


def _others_cost(run: Run, pairs: dict[str, Any]) -> tuple[float, float]:
    """Return FLOPs and bytes per image of all terms in `_others`."""
    costs = [
        term_cost(term, pairs[teacher_of(term, pairs)], num_classes=run.data.num_classes)
        for term in _others(run).values()
    ]
    return sum(flops for flops, _ in costs), sum(size for _, size in costs)


def _measured(run: Run) -> dict[str, Term]:
    """Return {name: term} for ViTKD, the only term with a measured speed, if it is active; otherwise {}."""
    return {name: term for name, term in run.losses.active().items() if term.cost}


def _others(run: Run) -> dict[str, Term]:
    """Return the active terms that compare tokens and have no measured speed. Terms on logits take negligible time."""
    return {name: term for name, term in run.losses.active().items() if term.needs.tokens and not term.cost}


def _models(run: Run) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Build the student and the teachers on the meta device. Raise ValueError if the student has no blocks."""
    with torch.device("meta"):
        student = build_student(replace(run.student, init=""), run.data)
        teachers = {}
        for name, config in run.teachers.items():
            needs_blocks = run.losses_of(name).needs.blocks("teacher")
            config = replace(config, checkpoint="random", head="")
            teachers[name] = build_teacher(config, run.data, role=role_of(name), needs_blocks=needs_blocks)
    for name, teacher in teachers.items():
        if number := run.teachers[name].keep_tokens:
            keep_patches(teacher, number)
    return student, teachers


def _rate(
    role: str, config: Any, model: nn.Module, size: int, rates: dict[str, Rate], hardware: Hardware
) -> tuple[Rate, str]:
    """Return a model's speed, and a text that tells where the speed is from.

    If this model was measured with 224-px images on this kind of GPU, return the measured speed. Otherwise compute the
    speed from the model's counted operations and an assumed fraction of the GPU's peak.

    Args:
        rates: measured speeds by architecture.
    """
    name = config.model.partition(".")[0]
    if name in rates and not config.model_args and size == 224 and hardware.is_measured:
        return rates[name], f"measured, row {rates[name].row}"
    flops = forward_flops(model, size) * (3 if role == "student" else 1)
    part = ASSUMED_MFU[role]
    peak = hardware.peak_tflops
    source = f"assumed: {part:.0%} of {peak:g} TFLOP/s; counted: {flops / 1e9:,.1f} GFLOP per image"
    return Rate("", part * peak * 1e12 / flops), source


def _gathered_modules(teacher: nn.Module) -> list[nn.Module]:
    """Return the modules of a sharded teacher that DeepSpeed gathers with one collective each.

    These are the teacher's blocks. In a model without blocks, they are all modules that own parameters directly.
    """
    has_own = (module for module in teacher.modules() if any(True for _ in module.parameters(recurse=False)))
    return [*getattr(teacher, "blocks", has_own)]


def _gathered_params(teacher: nn.Module, gathered: list[nn.Module], placement: str) -> int:
    """Return an upper bound on the gathered parameters of a partitioned teacher on one GPU.

    The host may gather as many blocks ahead of the GPU as `vitkd_ds.engine.teacher.Pace` allows, or a whole teacher if
    it has no blocks. In addition, DeepSpeed prefetches one bucket for each module that it enters, up to its limit on
    live parameters plus one block. When the first block starts, DeepSpeed has entered FETCHES modules.

    Args:
        gathered: modules returned by `_gathered_modules`.
        placement: shard or offload; selects the teacher's DeepSpeed file.
    """
    whole = num_parameters(teacher)
    largest = max(num_parameters(module) for module in gathered)
    if not hasattr(teacher, "blocks"):
        return whole
    zero = _ds_config(f"ds_configs/{TEACHER_FILES[placement]}")["zero_optimization"]
    bucket = zero.get("stage3_prefetch_bucket_size", 5e7)
    ahead = FETCHES * (bucket + largest) if bucket else 0  # whole blocks until a bucket is full
    ahead = min(ahead, zero.get("stage3_max_live_parameters", 1e9) + largest)
    return min(whole, (most_blocks(placement, 2 * largest) - 1) * largest + max(largest, int(ahead)))


def _ds_config(path: str) -> dict[str, Any]:
    return json.loads(find_ds_config(path).read_text())


def source_rows(run: Run, inputs: Inputs, hardware: Hardware, images: TrainImages) -> list[tuple[str, str, str]]:
    """Return one row per input: name, value, and a text that tells whether it was measured, counted or assumed."""
    again = "; time multiplied by 4/3 for the second forward (assumed)" if run.student.checkpoint_activations else ""
    here = "" if hardware.is_measured else " and on this GPU"
    hosts = f"rows {known.HOST_ROWS} (assumed equal for all model pairs{here})"
    parts = ", ".join(part.row for part in known.STEP_PARTS)
    step = f"measured, row {known.STEP.row}"
    host = f"{step}, minus rows {parts} and the update; multiplied by {known.FLAT_BACKWARD:.2f} from {hosts}"
    update = f"{step}, only the update; multiplied by {known.FLAT_UPDATE:.2f} from {hosts}"
    shard = f"measured, row {known.SHARD.row} minus row {known.REPLICA.row}; scaled by the number of blocks and {hosts}"
    kept = f"counted: {shapes.BLOCK_BYTES_PER_TOKEN} bytes per token and unit of width, and the losses' tensors"
    links = f"{hardware.nvlink_gb_per_s:g} / {hardware.network_gb_per_s:g} / {hardware.pcie_gb_per_s:g} GB/s"
    rates = "assumed" if isinstance(hardware, known.Cpu) else known.SOURCE
    loader = f"{known.LOADER.images_per_s:,.0f} images/s per core"
    of_teacher = [
        ("added by a sharded teacher", f"{1e3 * inputs.shard_host_s:.1f} ms", shard),
        ("teacher parameters", f"{inputs.teacher_params:,}", "counted"),
        ("  on a GPU, sharded", f"{inputs.gathered_params:,}", "counted, upper bound (see EXPERIMENTS.md)"),
        ("  on a GPU, offloaded", f"{inputs.offloaded_params:,}", "counted, upper bound"),
    ]
    # A student compiled as a whole yields all gradients at the end of backward, so nothing overlaps.
    beside = "nothing" if inputs.is_compiled else f"{BACKWARD_PART:.0%} of student and loss time"
    return [
        *([("teacher", f"{1 / inputs.teacher_s:,.0f} images/s", inputs.teacher_source)] if run.teachers else []),
        ("student", f"{1 / inputs.student_s:,.0f} images/s", inputs.student_source + again),
        *_loss_rows(run, inputs, hardware),
        ("fixed time per micro-batch", f"{1e3 * inputs.host_s:.1f} ms", host),
        ("fixed time per step", f"{1e3 * inputs.update_s:.1f} ms", update),
        ("trained parameters", f"{inputs.trained_params:,}", "counted; sent as fp32 gradients and bf16 weights"),
        *(of_teacher if run.teachers else []),
        ("arithmetic", f"{inputs.flops / 1e9:.1f} GFLOP per image", "counted: matrix products and attention"),
        ("kept for backward", f"{inputs.activation_bytes / 2**20:.1f} MiB per image", kept),
        ("input images", f"{inputs.image_bytes / 2**20:.1f} MiB per image", "counted: uint8, fp32, twice bf16"),
        ("links", links, f"NVLink, network and PCIe per GPU: {rates}"),
        ("link efficiency, latency", f"{EFFICIENCY:.0%}, {1e6 * LATENCY_S:.0f} us", "assumed"),
        ("reductions overlap with", beside, "counted on a CPU" if inputs.is_compiled else "assumed"),
        ("context, fragmentation", f"{CONTEXT_BYTES / 2**30:.1f} GiB", "assumed"),
        ("loader", loader, f"measured, row {known.LOADER.row}: crop and flip, without other augmentation"),
        ("epoch", f"{images.num_images:,} images", f"counted: {images.name}, whole steps only"),
        ("images on disk", f"{images.bytes_per_image / 1e3:.1f} kB per image", images.bytes_source),
    ]


def _loss_rows(run: Run, inputs: Inputs, hardware: Hardware) -> list[tuple[str, str, str]]:
    measured = others = "none", "counted: no such loss has a weight above 0"
    limit = "memory bandwidth" if isinstance(hardware, known.Cpu) else "peak"
    if measured_s := inputs.loss_s - inputs.others_s:
        source = (
            f"measured, row {known.LOSS.row}; scaled by the teacher's width squared and the GPU's {limit} (assumed)"
        )
        measured = f"{1 / measured_s:,.0f} images/s", source
    if names := ", ".join(_others(run)):
        part = ASSUMED_MFU["loss"]
        gflops = inputs.others_s * ASSUMED_MFU["loss"] * hardware.peak_tflops * 1e3
        source = f"assumed: {part:.0%} of {hardware.peak_tflops:g} TFLOP/s; counted: {gflops:.2f} GFLOP for {names}"
        others = f"{1e6 * inputs.others_s:.1f} us per image", source
    return [(f"{MEASURED_COST.title} loss", *measured), ("other losses on tokens", *others)]
