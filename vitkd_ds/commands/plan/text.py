"""`vitkd-ds plan`: the prediction of `vitkd_ds.commands.plan.predict` for one recipe and cluster, as text, with every input's source."""

from dataclasses import replace

from vitkd_ds.commands.plan.hardware import Hardware, find_hardware
from vitkd_ds.commands.plan.inputs import inputs_of, measured_on
from vitkd_ds.commands.plan.measured import Measured
from vitkd_ds.commands.plan.predict import SCALES_IF, Inputs, Layout, bytes_per_step, memory_bytes, scaling, step_time
from vitkd_ds.config.run import Run
from vitkd_ds.data.order import micro_batch_size

IMAGENET_IMAGES = 1_281_167
IMAGES_LINE = ("an epoch", f"{IMAGENET_IMAGES:,} images", "counted: ImageNet-1k's training set, whole steps only")
FULL = 0.9
"""Part of a GPU's memory that a layout may fill."""
WORTH = 0.02
"""Gain from which another way of sharding pays."""
SAVES_GIB = 0.1
"""From which a shard saves memory."""


def plan_text(run: Run, *, nodes: int, gpus: int, hardware: str = "h100") -> str:
    """Predict a run.

    Args:
        run: a recipe; it need not be able to train here.
        nodes: machines.
        gpus: GPUs of each.
        hardware: name of their kind.

    Raises:
        ValueError: unknown or unmeasured hardware or models, or GPUs that cannot share the global batch.
    """
    if min(nodes, gpus) < 1:
        raise ValueError(f"--nodes and --gpus must be positive, found {nodes} and {gpus}: GPUs are counted per node")
    kind = find_hardware(hardware)
    measured = measured_on(kind)
    sourced = inputs_of(run, kind)
    layout = _layout(run, nodes, gpus)
    sections = [
        f"{run.recipe} on {nodes} x {gpus} {kind.name}: a prediction, not a measurement",
        _speed(run, sourced.inputs, layout, kind),
        _memory(sourced.inputs, layout, kind),
        _data(sourced.inputs, layout, kind, measured),
        _scaling(run, sourced.inputs, kind),
        _advice(sourced.inputs, layout, kind),
        "inputs\n" + _table([*sourced.lines, _loader_line(measured), IMAGES_LINE]),
    ]
    return "\n\n".join(sections)


def _layout(run: Run, nodes: int, gpus: int) -> Layout:
    ranks, limit = nodes * gpus, run.micro_batch_size_per_gpu
    micro = micro_batch_size(world_size=ranks, limit=limit, global_batch_size=run.global_batch_size)
    return Layout(nodes, gpus, micro, run.global_batch_size // (micro * ranks), run.teacher.placement)


def _speed(run: Run, inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    time = step_time(inputs, layout, hardware)
    speed = layout.images / time.total
    sent = bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    steps = IMAGENET_IMAGES // run.global_batch_size
    tflops = speed / layout.ranks * inputs.flops / 1e12
    rows = [
        ("images/s", f"{speed:,.0f}", f"{speed / layout.ranks:,.0f} a GPU"),
        ("step", f"{1e3 * time.total:.1f} ms", f"{layout.micro_batch} images x {layout.accumulation} a GPU"),
        *((f"  {part}", f"{1e3 * seconds:.1f} ms", _left_of(part, sent)) for part, seconds in vars(time).items()),
        ("TFLOP/s a GPU", f"{tflops:.0f}", f"MFU {tflops / hardware.peak_tflops:.1%} of {hardware.peak_tflops:g}"),
        (f"{run.epochs:g} epochs", f"{run.epochs * steps * time.total / 3600:.1f} h", f"{steps:,} steps of "
         f"{run.global_batch_size} images; without evaluations and checkpoints"),
    ]  # fmt: skip
    return "speed\n" + _table(rows)


def _left_of(part: str, sent: dict[str, float]) -> str:
    what = {"gradients": "their reduction", "weights": "their gather", "gathers": "of the teacher's weights"}
    return f"{what[part]}: {sent[part] / 1e6:,.0f} MB a GPU, what arithmetic does not hide" if part in sent else ""


def _memory(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    parts = memory_bytes(inputs, layout)
    total = sum(parts.values()) / 2**30
    rows = [(name, f"{size / 2**30:.2f} GiB", "") for name, size in parts.items()]
    fits = "fits" if total <= FULL * hardware.memory_gib else "DOES NOT FIT: see the advice"
    return "memory per GPU\n" + _table([*rows, ("in all", f"{total:.1f} GiB", f"of {hardware.memory_gib:g}: {fits}")])


def _data(inputs: Inputs, layout: Layout, hardware: Hardware, measured: Measured) -> str:
    per_node = layout.images / step_time(inputs, layout, hardware).total / layout.nodes
    cores, disk = per_node * measured.loader.seconds, per_node * measured.loader_bytes_per_image
    file_gb = IMAGENET_IMAGES * measured.loader_bytes_per_image / 1e9
    return "per node\n" + _table([
        ("loader cores", f"{cores:.0f}", f"{cores / layout.gpus_per_node:.1f} a GPU"),
        ("disk", f"{disk / 1e6:,.0f} MB/s", f"until the file is in memory ({file_gb:.0f} GB, read once if there is "
         "room)"),
    ])  # fmt: skip


def _scaling(run: Run, inputs: Inputs, hardware: Hardware) -> str:
    layouts, ranks = [], 1
    while run.global_batch_size % ranks == 0 and ranks <= run.global_batch_size:
        gpus = min(ranks, hardware.gpus_per_node)
        layouts.append(_layout(run, ranks // gpus, gpus))
        ranks *= 2
    speeds, stop = scaling(inputs, layouts, hardware)
    end = len(layouts) if stop is None else stop + 2
    rows = [
        (f"{layout.nodes} x {layout.gpus_per_node}", f"{speed:,.0f} images/s",
         f"efficiency {speed / speeds[0] / layout.ranks:.0%}")
        for layout, speed in list(zip(layouts, speeds))[:end]
    ]  # fmt: skip
    if stop is None:
        return f"more GPUs, {run.global_batch_size} images a step\n" + _table(rows) + "\nno end up to one image a GPU"
    time = step_time(inputs, layouts[stop + 1], hardware)
    fixed = "the fixed times of a micro-batch and of a step"
    limit = fixed if time.host + time.update > time.communication else "communication"
    return (
        f"more GPUs, {run.global_batch_size} images a step\n{_table(rows)}\nit stops scaling at "
        f"{layouts[stop].ranks} GPUs: twice as many are {speeds[stop + 1] / speeds[stop]:.2f} x as fast (less than "
        f"{SCALES_IF:g}), limited by {limit}"
    )


def _advice(inputs: Inputs, layout: Layout, hardware: Hardware) -> str:
    def outcome(placement: str) -> tuple[float, float]:
        other = replace(layout, placement=placement)
        return step_time(inputs, other, hardware).total, sum(memory_bytes(inputs, other).values()) / 2**30

    choices = ["replica", "shard", "offload"] + (["node"] if layout.nodes > 1 else [])
    outcomes = {placement: outcome(placement) for placement in choices}
    rows = [(placement, f"{1e3 * seconds:.1f} ms", f"{gib:.1f} GiB") for placement, (seconds, gib) in outcomes.items()]
    fitting = [p for p, (_, gib) in outcomes.items() if gib <= FULL * hardware.memory_gib and p != "node"]
    best = min(fitting, key=lambda p: (outcomes[p][0], outcomes[p][1]), default=None)
    if best is None:
        text = "nothing fits: lower --micro_batch_size_per_gpu, or set --student.checkpoint_activations=true"
    else:
        lost = outcomes["shard"][0] / outcomes["replica"][0] - 1
        saved = outcomes["replica"][1] - outcomes["shard"][1]
        text = f"--teacher.placement={best}: a shard costs {lost:.1%} of a step and saves "
        if saved >= SAVES_GIB:
            text += f"{saved:.1f} GiB a GPU; it pays only where a replica does not fit"
        elif layout.ranks == 1:
            text += "no memory on one GPU, which holds all of it"
        else:
            text += (
                "no memory, as DeepSpeed gathers so much of this teacher ahead: "
                '"stage3_max_live_parameters" in ds_configs/teacher_zero3.json would limit it'
            )
        text += f" (replica: {outcomes['replica'][1]:.1f} of {hardware.memory_gib:g} GiB)"
    if "node" in outcomes:
        gain = outcomes["shard"][0] / outcomes["node"][0] - 1
        pays = "would pay" if gain >= WORTH else "would not pay"
        text += (
            f"\nsharding within the node {pays}: {gain:.1%} faster than over all nodes; DeepSpeed 0.19.8 cannot do it "
            "without an optimizer (zero_hpz_partition_size is broken there)"
        )
    return "the teacher's placement\n" + _table(rows) + "\n" + text


def _loader_line(measured: Measured) -> tuple[str, str, str]:
    what = (
        f"{measured.loader.images_per_s:,.0f} images/s a core, {measured.loader_bytes_per_image / 1e3:.1f} kB an image"
    )
    return (
        "loader",
        what,
        f"measured, row {measured.loader.row} (a busy EPYC core; 500 pixels, quality 90; crop and flip alone)",
    )


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows)
