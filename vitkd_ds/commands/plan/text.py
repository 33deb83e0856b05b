"""The page that `vitkd-ds plan` prints: the prediction for one recipe and cluster, and every input with its source."""

import math
from dataclasses import replace

from vitkd_ds.commands.plan import predict
from vitkd_ds.commands.plan.hardware import Hardware, find_hardware
from vitkd_ds.commands.plan.inputs import TrainImages, inputs_of, source_rows, train_images
from vitkd_ds.commands.plan.predict import Inputs, Layout
from vitkd_ds.config.run import Run
from vitkd_ds.data.order import steps_per_epoch
from vitkd_ds.train.schedule import make_schedule, split_batch

FULL = 0.9
"""Part of a GPU's memory that a layout may fill."""
WORTH = 0.02
"""Least gain for which another way of sharding pays."""
SAVES_GIB = 0.1
"""Least memory per GPU that counts as saved, GiB."""


def plan_text(run: Run, *, nodes: int, gpus: int, hardware: str = "h100") -> str:
    """Predict a run, which need not be able to train here, on `nodes` machines with `gpus` GPUs each; raises ValueError
    for unknown hardware, models without blocks, or GPUs that cannot share the global batch."""
    if min(nodes, gpus) < 1:
        raise ValueError(f"--nodes and --gpus must be positive, found {nodes} and {gpus}: GPUs are counted per node")
    kind = find_hardware(hardware)
    inputs, layout, images = inputs_of(run, kind), _layout(run, nodes, gpus), train_images(run, kind)
    return "\n\n".join([
        f"{run.recipe} on {nodes} x {gpus} {hardware}: a prediction, not a measurement",
        _speed(run, inputs, layout, kind, images), _memory(inputs, layout, kind),
        _per_node(inputs, layout, kind, images),
        _more_gpus(run, inputs, kind), _placement(inputs, layout, kind),
        _section("inputs", source_rows(run, inputs, kind)),
    ])  # fmt: skip


def _layout(run: Run, nodes: int, gpus: int) -> Layout:
    split = split_batch(run.global_batch_size, world_size=nodes * gpus, limit=run.micro_batch_size_per_gpu)
    return Layout(nodes, gpus, split.micro_batch_size, split.accumulation_steps, run.teacher.placement)


def _speed(run: Run, inputs: Inputs, layout: Layout, hardware: Hardware, images: TrainImages) -> str:
    seconds = predict.step_parts(inputs, layout, hardware)
    total, speed = sum(seconds.values()), predict.images_per_s(inputs, layout, hardware)
    sent = predict.bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    what = {"gradients": "their reduction", "weights": "their gather", "gathers": "of the teacher's weights"}
    left = {part: f"{what[part]}: {sent[part] / 1e6:,.0f} MB a GPU, what arithmetic does not hide" for part in sent}
    if copied := predict.copied_bytes(layout, teacher_params=inputs.teacher_params):
        left["gathers"] += f", with {copied / 1e6:,.0f} MB from the CPU's memory"
    steps = steps_per_epoch(images.num_images, global_batch_size=run.global_batch_size)
    schedule = make_schedule(run, steps_per_epoch=steps, accumulation_steps=layout.accumulation)
    hours = schedule.total_steps * total / 3600
    length = f"{run.epochs:g} epochs"
    if run.max_steps and schedule.total_steps == run.max_steps:
        length = f"{run.max_steps:,} steps"
    tflops = speed / layout.ranks * inputs.flops / 1e12
    return _section("speed", [
        ("images/s", f"{speed:,.0f}", f"{speed / layout.ranks:,.0f} a GPU"),
        ("step", f"{1e3 * total:.1f} ms", f"{layout.micro_batch} images x {layout.accumulation} a GPU"),
        *((f"  {part}", f"{1e3 * part_s:.1f} ms", left.get(part, "")) for part, part_s in seconds.items()),
        ("TFLOP/s a GPU", f"{tflops:.0f}", f"MFU {tflops / hardware.peak_tflops:.1%} of {hardware.peak_tflops:g}"),
        (length, f"{hours:.1f} h" if hours >= 1 else f"{hours:.2g} h", f"{steps:,} steps of "
         f"{run.global_batch_size} images an epoch; without evaluations and checkpoints"),
    ])  # fmt: skip


def _memory(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    parts = predict.memory_bytes(inputs, layout)
    gib = sum(parts.values()) / 2**30
    rows = [(name, f"{size / 2**30:.2f} GiB", "") for name, size in parts.items()]
    fits = "fits" if gib <= FULL * hardware.memory_gib else "DOES NOT FIT: see the advice"
    return _section("memory per GPU", [*rows, ("in all", f"{gib:.1f} GiB", f"of {hardware.memory_gib:g}: {fits}")])


def _per_node(inputs: Inputs, layout: Layout, hardware: Hardware, images: TrainImages) -> str:
    speed = predict.images_per_s(inputs, layout, hardware) / layout.nodes
    cores = speed * hardware.measured.loader.seconds
    gigabytes = images.num_images * images.bytes_per_image / 1e9
    size = f"{gigabytes:.0f}" if gigabytes >= 10 else f"{gigabytes:.2g}"
    return _section("per node", [
        ("loader cores", f"{cores:.0f}", f"{cores / layout.gpus_per_node:.1f} a GPU"),
        ("disk", f"{speed * images.bytes_per_image / 1e6:,.0f} MB/s", "until the file is in memory "
         f"({size} GB, read once if there is room)"),
    ])  # fmt: skip


def _more_gpus(run: Run, inputs: Inputs, hardware: Hardware) -> str:
    layouts, ranks = [], 1
    while run.global_batch_size % ranks == 0:
        gpus = min(ranks, hardware.gpus_per_node)
        layouts.append(_layout(run, ranks // gpus, gpus))
        ranks *= 2
    speeds, stop = predict.scaling(inputs, layouts, hardware)
    text = "no end up to one image a GPU"
    if stop is not None:
        time = predict.step_parts(inputs, layouts[stop + 1], hardware)
        is_fixed = time["host"] + time["update"] > time["gradients"] + time["weights"] + time["gathers"]
        limit = "the fixed times of a micro-batch and of a step" if is_fixed else "communication"
        text = f"it stops scaling at {layouts[stop].ranks} GPUs: twice as many are "
        text += f"{speeds[stop + 1] / speeds[stop]:.2f} x as fast (less than {predict.SCALES_IF:g}), limited by {limit}"
        layouts = layouts[: stop + 2]
    rows = [
        (f"{layout.nodes} x {layout.gpus_per_node}", f"{speed:,.0f} images/s",
         f"efficiency {speed / speeds[0] / layout.ranks:.0%}")
        for layout, speed in zip(layouts, speeds)
    ]  # fmt: skip
    return _section(f"more GPUs, {run.global_batch_size} images a step", rows, text)


def _placement(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    seconds, gib = {}, {}
    for placement in ["replica", "shard", "offload"] + (["node"] if layout.nodes > 1 else []):
        other = replace(layout, placement=placement)
        seconds[placement] = sum(predict.step_parts(inputs, other, hardware).values())
        gib[placement] = sum(predict.memory_bytes(inputs, other).values()) / 2**30
    # Sharding within a node is computed only to say what it would bring: DeepSpeed cannot do it.
    fitting = [p for p in gib if gib[p] <= FULL * hardware.memory_gib and p != "node"]
    best = min(fitting, key=lambda p: (seconds[p], gib[p]), default=None)
    if gib["replica"] - gib["shard"] >= SAVES_GIB:
        saves = f"{gib['replica'] - gib['shard']:.1f} GiB a GPU; it pays only where a replica does not fit"
    elif layout.ranks == 1:
        saves = "no memory on one GPU, which holds all of it"
    else:
        more = gib["shard"] - gib["replica"]
        saves = f"no memory (it takes {more:.1f} GiB more), " if more >= SAVES_GIB else "next to no memory, "
        saves += "as so much of this teacher may be gathered ahead"
    text = "nothing fits: lower --micro_batch_size_per_gpu, or set --student.checkpoint_activations=true"
    if best:
        costs = f"{seconds['shard'] / seconds['replica'] - 1:.1%} of a step and saves {saves}"
        text = f"--teacher.placement={best}: a shard costs {costs} "
        needed = {p: math.ceil(gib[p] / FULL) for p in ("replica", best)}
        text += f"(replica: {gib['replica']:.1f} of {hardware.memory_gib:g} GiB)"
        text += f"\nwith this micro-batch a replica stops fitting on GPUs of less than {needed['replica']} GiB"
        if best != "replica":
            text += f", {best} on GPUs of less than {needed[best]}"
    if "node" in seconds:
        gain = seconds["shard"] / seconds["node"] - 1
        text += f"\nsharding within the node {'would' if gain >= WORTH else 'would not'} pay: {gain:.1%} faster than "
        text += "over all nodes; DeepSpeed 0.19.8 cannot do it without an optimizer (zero_hpz_partition_size is broken "
        text += "there)"
    rows = [(placement, f"{1e3 * seconds[placement]:.1f} ms", f"{gib[placement]:.1f} GiB") for placement in seconds]
    return _section("the teacher's placement", rows, text)


def _section(title: str, rows: list[tuple[str, str, str]], *after: str) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([title, *lines, *after])
