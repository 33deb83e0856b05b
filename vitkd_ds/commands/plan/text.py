"""Text of `vitkd-ds plan`: the prediction for a recipe on a cluster, and every input with its source."""

import math
from dataclasses import replace

from vitkd_ds.commands.plan import predict
from vitkd_ds.commands.plan.hardware import LOADER, Hardware, find_hardware
from vitkd_ds.commands.plan.inputs import TrainImages, inputs_of, source_rows, train_images
from vitkd_ds.commands.plan.predict import Inputs, Layout
from vitkd_ds.config.run import Run
from vitkd_ds.config.teachers import role_of
from vitkd_ds.data.order import steps_per_epoch
from vitkd_ds.train.schedule import make_schedule, split_batch

OF_A_TEACHER = {"teacher", "gathers"}
"""Components of a step that do not exist without a teacher."""
FULL = 0.9
"""Maximum fraction of a GPU's memory that a run may use."""


def plan_text(run: Run, *, nodes: int, gpus: int | None = None, hardware: str = "h100") -> str:
    """Return the prediction for a run as text. This machine need not be able to train the run.

    Args:
        run: settings of the run.
        nodes: number of machines.
        gpus: number of GPUs per machine; None means 8. With hardware "cpu", it is the number of processes per machine,
            and None means 1.
        hardware: kind of GPU, a key of `vitkd_ds.commands.plan.hardware.HARDWARE`, or "cpu" for this machine's CPU.

    Raises:
        ValueError: the hardware is unknown, the student has no blocks, or the global batch is not divisible by the
            number of GPUs.
    """
    if gpus is None:
        gpus = 1 if hardware == "cpu" else 8
    if min(nodes, gpus) < 1:
        raise ValueError(f"--nodes and --gpus (per node) must be positive, got {nodes} and {gpus}")
    kind = find_hardware(hardware, processes=gpus)
    inputs = inputs_of(run, kind)
    layout = _layout(run, nodes, gpus)
    images = train_images(run)
    sections = [
        f"{run.recipe} on {nodes} x {gpus} {hardware}: a prediction, not a measurement",
        _speed(run, inputs, layout, kind, images),
        _memory(inputs, layout, kind),
        _per_node(inputs, layout, kind, images),
        *([_placement(inputs, layout, kind)] if run.teachers else []),
        _section("inputs", source_rows(run, inputs, kind, images)),
    ]
    text = "\n\n".join(sections)
    return text.replace("GPUs", "processes").replace("GPU", "process") if hardware == "cpu" else text


def _layout(run: Run, nodes: int, gpus: int) -> Layout:
    split = split_batch(run.global_batch_size, world_size=nodes * gpus, limit=run.micro_batch_size_per_gpu)
    placements = {teacher.placement for teacher in run.teachers.values()} or {"replica"}
    if len(placements) > 1:
        raise ValueError(
            f"plan needs one placement of all teachers, got {' and '.join(sorted(placements))}. Set "
            f"{' '.join(f'--{role_of(name)}.placement' for name in run.teachers)} to the same value."
        )
    return Layout(nodes, gpus, split.micro_batch_size, split.accumulation_steps, placements.pop())


def _speed(run: Run, inputs: Inputs, layout: Layout, hardware: Hardware, images: TrainImages) -> str:
    seconds = predict.step_parts(inputs, layout, hardware)
    total = sum(seconds.values())
    speed = predict.images_per_s(inputs, layout, hardware)
    # Transfers that overlap with computation cost no time. So lines show all bytes, but only the time without overlap.
    sent = predict.bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    what = {"gradients": "reduction", "weights": "gather after the update", "gathers": "of the teacher's weights"}
    left = {part: f"{what[part]}: {sent[part] / 1e6:,.0f} MB per GPU" for part in sent}
    if copied := predict.copied_bytes(layout, teacher_params=inputs.teacher_params):
        left["gathers"] += f", and {copied / 1e6:,.0f} MB from CPU memory"
    left = {part: f"{text}; time not hidden by computation" for part, text in left.items()}
    parts = seconds if run.teachers else {part: seconds[part] for part in seconds if part not in OF_A_TEACHER}
    steps = steps_per_epoch(images.num_images, global_batch_size=run.global_batch_size)
    schedule = make_schedule(run, steps_per_epoch=steps, accumulation_steps=layout.accumulation)
    length = f"{run.epochs:g} epochs"
    if run.max_steps and schedule.total_steps == run.max_steps:
        length = f"{run.max_steps:,} steps"
    about = f"{steps:,} steps of {run.global_batch_size} images per epoch; without evaluations and checkpoints"
    # The FLOPs per image include all models. Each GPU processes its share of the images.
    tflops = speed / layout.ranks * inputs.flops / 1e12
    shown = f"{tflops:.0f}" if tflops >= 1 else f"{tflops:.2g}"
    rows = [
        ("images/s", f"{speed:,.0f}", f"{speed / layout.ranks:,.0f} per GPU"),
        (
            "step",
            f"{1e3 * total:.1f} ms",
            f"micro-batches of {layout.micro_batch} images, {layout.accumulation} per GPU",
        ),
        *((f"  {part}", f"{1e3 * part_s:.1f} ms", left.get(part, "")) for part, part_s in parts.items()),
        ("TFLOP/s per GPU", shown, f"MFU {tflops / hardware.peak_tflops:.1%}, peak {hardware.peak_tflops:g} TFLOP/s"),
        (length, _duration(schedule.total_steps * total), about),
    ]
    return _section("speed", rows)


def _duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _memory(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    parts = predict.memory_bytes(inputs, layout)
    gib = sum(parts.values()) / 2**30
    rows = [(name, f"{size / 2**30:.2f} GiB", "") for name, size in parts.items() if size]
    fits = "fits" if gib <= FULL * hardware.memory_gib else "DOES NOT FIT"
    return _section("memory per GPU", [*rows, ("total", f"{gib:.1f} GiB", f"of {hardware.memory_gib:g} GiB: {fits}")])


def _per_node(inputs: Inputs, layout: Layout, hardware: Hardware, images: TrainImages) -> str:
    speed = predict.images_per_s(inputs, layout, hardware) / layout.nodes
    cores = speed * LOADER.seconds
    gigabytes = images.num_images * images.bytes_per_image / 1e9
    size = f"{gigabytes:.0f}" if gigabytes >= 10 else f"{gigabytes:.2g}"
    about = f"until the file ({size} GB) is cached in memory"
    rows = [
        ("loader cores", f"{cores:.0f}", f"{cores / layout.gpus_per_node:.1f} per GPU"),
        ("disk", f"{speed * images.bytes_per_image / 1e6:,.0f} MB/s", about),
    ]
    return _section("per node", rows)


def _placement(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    seconds = {}
    gib = {}
    rows = []
    for placement in ("replica", "shard", "offload"):
        other = replace(layout, placement=placement)
        seconds[placement] = sum(predict.step_parts(inputs, other, hardware).values())
        gib[placement] = sum(predict.memory_bytes(inputs, other).values()) / 2**30
        least = f"{gib[placement]:.1f} GiB; needs a GPU with {math.ceil(gib[placement] / FULL)} GiB or more"
        rows.append((placement, f"{1e3 * seconds[placement]:.1f} ms", least))
    fitting = [placement for placement in gib if gib[placement] <= FULL * hardware.memory_gib]
    text = "no placement fits: lower --micro_batch_size_per_gpu or pass --student.checkpoint_activations=true"
    if fitting:
        best = min(fitting, key=lambda placement: (seconds[placement], gib[placement]))
        slower = f"{seconds['shard'] / seconds['replica'] - 1:+.1%}"
        text = f"--teacher.placement={best} is the fastest that fits. Relative to a replica, a shard changes "
        text += f"the step time by {slower} and the memory by {gib['shard'] - gib['replica']:+.1f} GiB."
    return _section("teacher placement", rows, text)


def _section(title: str, rows: list[tuple[str, str, str]], *after: str) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    return "\n".join([title, *lines, *after])
