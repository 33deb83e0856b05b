"""Collect the inputs of a prediction: measured speeds, the models' shapes and assumptions, each with its source."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitkd_ds.commands.plan import shapes
from vitkd_ds.commands.plan.hardware import Hardware, Rate
from vitkd_ds.commands.plan.predict import BACKWARD_PART, CONTEXT_BYTES, EFFICIENCY, LATENCY_S, Inputs
from vitkd_ds.config.run import Run
from vitkd_ds.config.term import Term
from vitkd_ds.data.beton.format import SUFFIX, read_beton
from vitkd_ds.data.subset import use_part
from vitkd_ds.engine.ds_config import TEACHER_FILES, find_ds_config, is_bf16, most_blocks
from vitkd_ds.engine.optimizers.base import state_bytes
from vitkd_ds.models.build import build_student, build_teacher
from vitkd_ds.models.cost import forward_flops, keep_patches, num_parameters, term_cost
from vitkd_ds.models.distiller import Distiller
from vitkd_ds.models.pair import check_pair

FETCHES = 8
"""Modules that DeepSpeed enters up to the first block: ours, the patch embedding and its two parts, three that do
nothing, the block."""
IMAGENET_IMAGES = 1_281_167
ASSUMED_MFU = {"teacher": 0.4, "student": 0.25, "loss": 0.25}
"""Part of the peak that a model which was not measured reaches; assumed. Those that were reach 27 to 46 % as teachers
(C1 to C3) and 10 to 36 % as students (C4 to C6), the more the larger they are. No loss but ViTKD was."""


@dataclass(frozen=True)
class TrainImages:
    """Size of the training set."""

    num_images: int
    bytes_per_image: float
    """Mean of the stored images."""
    name: str
    """The .beton that was counted, or ImageNet-1k where there is none."""
    bytes_source: str
    """Where `bytes_per_image` comes from."""


def train_images(run: Run, hardware: Hardware) -> TrainImages:
    """Count the images of data.train where it is a .beton that exists, else take ImageNet-1k's as the loader was
    measured on them; raises ValueError for a .beton that is unfit."""
    path = Path(run.data.train)
    if path.suffix == SUFFIX and path.is_file():
        info, stored, labels = read_beton(path)
        *_, chosen = use_part(run.data, labels, info.classes, path=str(path), split="train")
        return TrainImages(len(chosen), float(stored["size"][chosen].mean()), str(path), f"counted: {path}")
    name, measured = "ImageNet-1k's training set", hardware.measured
    source = f"measured, row {measured.loader.row}: ImageNet's, as the loader read them"
    return TrainImages(IMAGENET_IMAGES, measured.loader_bytes_per_image, name, source)


def inputs_of(run: Run, hardware: Hardware) -> Inputs:
    """Look up, count or assume every input of a prediction on hardware of `find_hardware`. Raises ValueError for models
    without blocks."""
    measured = hardware.measured
    if not is_bf16(_ds_config(run.ds_config)):
        raise ValueError(f"plan counts bytes of a student in bf16, found fp32 weights in {run.ds_config}: leave it out")
    student, teacher = _models(run)
    teacher_rate, student_rate = (rate for rate, _ in _rates(run, hardware, student, teacher))
    size, teacher_size = run.data.image_size, run.teacher.image_size or run.data.image_size
    pair = check_pair(student, teacher, run.losses, image_size=size, teacher_image_size=teacher_size)
    with torch.device("meta"):
        distiller = Distiller(student, run.losses, pair)
    vitkd = distiller.vitkd if run.losses.vitkd.weight else None
    checkpointed = run.student.checkpoint_activations
    loss_bytes = shapes.LOSS_BYTES_PER_PATCH * student.patch_embed.num_patches * pair.teacher_dim if vitkd else 0
    loss_s = hardware.slower * measured.loss.seconds * (pair.teacher_dim / measured.loss_dim) ** 2 if vitkd else 0.0
    costs = [term_cost(term, pair, num_classes=run.data.num_classes) for term in _others(run).values()]
    others_flops, others_bytes = (sum(each) for each in zip((0, 0), *costs))
    others_s = others_flops / (ASSUMED_MFU["loss"] * hardware.peak_tflops * 1e12)
    # What a whole step takes beyond its parts alone: the update, and launches and hooks, which no GPU work hides.
    beyond_s = measured.step_images * (measured.step.seconds - sum(part.seconds for part in measured.alone))
    hooks_s = measured.step_images * (measured.shard.seconds - measured.before_shard.seconds)
    # Those were measured with one parameter a weight; flat ones make them shorter as they do on a CPU.
    then, now = measured.host_then, measured.host_now
    beyond_s -= measured.update_ms / 1e3
    gathered = _gathered_modules(teacher)
    return Inputs(
        # Checkpointing computes the forward again, which is a third of forward and backward.
        teacher_s=teacher_rate.seconds, student_s=student_rate.seconds * (4 / 3 if checkpointed else 1),
        loss_s=loss_s + others_s, others_s=others_s,
        host_s=beyond_s * now.backward / then.backward, update_s=measured.update_ms / 1e3 * now.update / then.update,
        shard_host_s=hooks_s * now.gathers / then.gathers * len(gathered) / measured.shard_blocks,
        flops=shapes.step_flops(student, teacher, vitkd, image_size=size, teacher_image_size=teacher_size)
        + others_flops,
        trained_params=num_parameters(distiller), teacher_params=num_parameters(teacher),
        gathers=len(gathered) + 1, gathered_params=_gathered_params(teacher, gathered, "shard"),
        offloaded_params=_gathered_params(teacher, gathered, "offload"),
        activation_bytes=shapes.activation_bytes(student, checkpointed=checkpointed) + loss_bytes + others_bytes,
        image_bytes=shapes.IMAGE_BYTES_PER_VALUE * 3 * max(size, teacher_size) ** 2,
        is_compiled=run.is_compiled, state_bytes=state_bytes(distiller, run.optim),
        bucket_elements=int(_ds_config(run.ds_config)["zero_optimization"].get("reduce_bucket_size", 500_000_000)),
    )  # fmt: skip


def _others(run: Run) -> dict[str, Term]:
    """The active terms of tokens that were not measured. Those of logits alone are too small to count."""
    return {name: term for name, term in run.losses.active().items() if term.needs.tokens and name != "vitkd"}


def _models(run: Run) -> tuple[nn.Module, nn.Module]:
    """Student and teacher of a run, on the meta device. Raises ValueError if the student has no blocks to count."""
    if not run.teacher:
        raise ValueError(f"plan needs a teacher, found none in recipe {run.recipe}: name a recipe of a pair")
    with torch.device("meta"):
        student = build_student(replace(run.student, init=""), run.data)
        needs_blocks = bool(run.losses.needs.teacher_blocks)
        teacher = build_teacher(replace(run.teacher, checkpoint="random", head=""), run.data, needs_blocks=needs_blocks)
    if run.teacher.keep_tokens:
        keep_patches(teacher, run.teacher.keep_tokens)
    return student, teacher


def _rates(run: Run, hardware: Hardware, student: nn.Module, teacher: nn.Module) -> list[tuple[Rate, str]]:
    """Speeds of teacher and student, each with its source: measured where they were, as they are, at 224 pixels; else
    of the operations that are counted, at an assumed part of the peak."""
    found = []
    for role, config, model, rates in (
        ("teacher", run.teacher, teacher, hardware.measured.teacher),
        ("student", run.student, student, hardware.measured.student),
    ):
        size, name = getattr(config, "image_size", 0) or run.data.image_size, config.model.partition(".")[0]
        is_whole = not getattr(config, "keep_tokens", 0) and not hardware.is_borrowed
        if name in rates and not config.model_args and size == 224 and is_whole:
            found.append((rates[name], f"measured, row {rates[name].row}"))
            continue
        flops = forward_flops(model, size) * (3 if role == "student" else 1)
        part, peak = ASSUMED_MFU[role], hardware.peak_tflops
        source = f"assumed: {part:.0%} of {peak:g} TFLOP/s, for {flops / 1e9:,.1f} GFLOP an image, counted"
        found.append((Rate("", part * peak * 1e12 / flops), source))
    return found


def _gathered_modules(teacher: nn.Module) -> list[nn.Module]:
    """The parts of a sharded teacher that come in one collective each: its blocks, or of a model without such every
    module with weights of its own."""
    has_own = (module for module in teacher.modules() if any(True for _ in module.parameters(recurse=False)))
    return [*getattr(teacher, "blocks", has_own)]


def _gathered_params(teacher: nn.Module, gathered: list[nn.Module], placement: str) -> int:
    """Most parameters of a partitioned teacher on one GPU at a time, with DeepSpeed's file as shipped or edited.

    The GPU is behind the host by as many blocks as `Pace` lets it, or by all of a teacher without blocks.
    Where the host is, each module that DeepSpeed enters gathers another prefetch bucket ahead, whatever is there
    already, up to its limit on live parameters and a block more; when the first block starts, FETCHES modules have.
    """
    whole, largest = num_parameters(teacher), max(num_parameters(module) for module in gathered)
    if not hasattr(teacher, "blocks"):
        return whole
    zero = _ds_config(f"ds_configs/{TEACHER_FILES[placement]}")["zero_optimization"]
    bucket = zero.get("stage3_prefetch_bucket_size", 5e7)
    ahead = FETCHES * (bucket + largest) if bucket else 0  # whole blocks, until a bucket is full
    ahead = min(ahead, zero.get("stage3_max_live_parameters", 1e9) + largest)
    return min(whole, (most_blocks(placement, 2 * largest) - 1) * largest + max(largest, int(ahead)))


def _ds_config(path: str) -> dict[str, Any]:
    return json.loads(find_ds_config(path).read_text())


def source_rows(run: Run, inputs: Inputs, hardware: Hardware) -> list[tuple[str, str, str]]:
    """List every input: what it is, its value, and whether it was measured, counted or assumed."""
    measured, num_blocks, images = hardware.measured, inputs.gathers - 1, train_images(run, hardware)
    (_, teacher_source), (_, student_source) = _rates(run, hardware, *_models(run))
    step, here = f"measured, row {measured.step.row}", ", and on this GPU" * hardware.is_borrowed
    same = f"(assumed the same for all pairs and micro-batches{here})"
    then, now = measured.host_then, measured.host_now
    rows = f"rows {', '.join(host.row for host in (*then, *now))}"
    again = ", x 4/3 for the second forward (assumed)" if run.student.checkpoint_activations else ""
    # What hides the reductions: nothing, if all gradients come at once.
    beside = f"{BACKWARD_PART:.0%} of student and loss", "assumed: the backward pass"
    if inputs.is_compiled:
        hands_out = "compiled as a whole, the student hands out all gradients at the end of backward"
        beside = "nothing", f"counted on a CPU: {hands_out}"
    return [
        ("teacher", f"{1 / inputs.teacher_s:,.0f} images/s", teacher_source),
        ("student", f"{1 / inputs.student_s:,.0f} images/s", f"{student_source}{again}"),
        *_loss_rows(run, inputs, hardware),
        ("fixed time a micro-batch", f"{1e3 * inputs.host_s:.1f} ms", f"{step}, less "
         f"{', '.join(part.row for part in measured.alone)} and the update, x {now.backward / then.backward:.2f}: what "
         f"flat parameters leave of it on a CPU, {rows} {same}"),
        ("fixed time a step", f"{1e3 * inputs.update_s:.1f} ms", f"{step}, its parts: the update, with what the GPU "
         f"computes in it, x {now.update / then.update:.2f}, {rows} {same}"),
        ("more for a sharded teacher", f"{1e3 * inputs.shard_host_s:.1f} ms", f"measured, rows {measured.shard.row} "
         f"and {measured.before_shard.row}, x {now.gathers / then.gathers:.2f}, {rows}, x {num_blocks}/"
         f"{measured.shard_blocks} blocks, or modules of a model without (assumed)"),
        ("trained parameters", f"{inputs.trained_params:,}", f"counted ({find_ds_config(run.ds_config).name}: fp32 "
         "gradients, bf16 weights on the wire)"),
        ("teacher's parameters", f"{inputs.teacher_params:,}", "counted"),
        ("of a shard gathered at a time", f"{inputs.gathered_params:,}", "counted, at most: the host runs ahead, and "
         "DeepSpeed gathers ahead of it (see EXPERIMENTS.md)"),
        ("of an offloaded one", f"{inputs.offloaded_params:,}", "counted, at most"),
        ("arithmetic", f"{inputs.flops / 1e9:.1f} GFLOP an image", "counted, matrix products and attention"),
        ("kept for backward", f"{inputs.activation_bytes / 2**20:.1f} MiB an image", "counted, "
         f"{shapes.BLOCK_BYTES_PER_TOKEN} bytes a token and unit of width in a block, {shapes.LOSS_BYTES_PER_PATCH} in "
         "ViTKD (checked on a CPU), and what autograd keeps of an image in the other losses"),
        ("images themselves", f"{inputs.image_bytes / 2**20:.1f} MiB an image", "counted: uint8, mixed in fp32, "
         "normalised twice in bf16"),
        ("speed at other micro-batches", "the same an image", "assumed: a GPU is as efficient as at 256 images"),
        ("augmentation", "left out", "not counted: RESULTS says what it takes of the loader's cores"),
        ("links", f"{hardware.nvlink_gb_per_s:g} / {hardware.network_gb_per_s:g} / {hardware.pcie_gb_per_s:g} GB/s",
         f"within a node, network and PCIe of a GPU: {hardware.source}"),
        ("of which used", f"{EFFICIENCY:.0%}, {1e6 * LATENCY_S:.0f} us to start", "assumed"),
        ("reductions run beside", *beside),
        ("context, fragmentation", f"{CONTEXT_BYTES / 2**30:.1f} GiB", "assumed"),
        ("loader", f"{measured.loader.images_per_s:,.0f} images/s a core, {measured.loader_bytes_per_image / 1e3:.1f} "
         "kB an image", f"measured, row {measured.loader.row} (a busy EPYC core; 500 pixels, quality 90; crop and flip "
         "alone)"),
        ("an epoch", f"{images.num_images:,} images", f"counted: {images.name}, whole steps only"),
        ("images on disk", f"{images.bytes_per_image / 1e3:.1f} kB an image", images.bytes_source),
    ]  # fmt: skip


def _loss_rows(run: Run, inputs: Inputs, hardware: Hardware) -> list[tuple[str, str, str]]:
    measured = hardware.measured
    vitkd = others = "none", "counted: its weight is 0"
    if vitkd_s := inputs.loss_s - inputs.others_s:
        # ViTKD was measured at one width: the scale shows how far from it this prediction reaches.
        scale = vitkd_s / measured.loss.seconds / hardware.slower
        source = f"measured, row {measured.loss.row}, x {1 / scale:.2g} for width {measured.loss_dim * scale**0.5:.0f} "
        source += "(assumed: its convolutions grow with the width squared)"
        borrowed = f", x {1 / hardware.slower:.2g} for the peak of this GPU (assumed)" * hardware.is_borrowed
        vitkd = f"{1 / vitkd_s:,.0f} images/s", source + borrowed
    if names := ", ".join(_others(run)):
        part, gflops = ASSUMED_MFU["loss"], inputs.others_s * ASSUMED_MFU["loss"] * hardware.peak_tflops * 1e3
        source = f"assumed: {part:.0%} of {hardware.peak_tflops:g} TFLOP/s, for {gflops:.2f} GFLOP of {names}, counted"
        others = f"{1e6 * inputs.others_s:.1f} us an image", f"{source}; what is no matrix product is not"
    return [("ViTKD loss", *vitkd), ("other losses of tokens", *others)]
