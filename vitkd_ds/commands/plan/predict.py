"""Predict a run on a cluster: images/s, hours, memory, loader cores, disk, and where more GPUs stop helping.

A model on paper, from speeds measured on one GPU (`vitkd_ds.commands.plan.measured`) and the makers' figures (`vitkd_ds.commands.plan.hardware`).
One micro-batch of m images takes

    m (teacher + student + loss) + host + what communication the arithmetic does not hide

with `host` what the measured step takes beside the update and those three measured alone: launches, hooks. A step is k
micro-batches, the update, and one gather of the updated weights. `vitkd_ds.commands.plan.text` prints it.

What DeepSpeed 0.19.8 sends, of S bytes over N ranks in a ring: an all-reduce 2 (N-1)/N S (ZeRO-2 all-reduces the fp32
gradients of every micro-batch, and each rank keeps its part; its `reduce_scatter` does so too), a gather (N-1)/N S
(bf16 weights once a step; the sharded teacher once a micro-batch).
"""

import math
from dataclasses import dataclass

from vitkd_ds.commands.plan.hardware import Hardware

EFFICIENCY = 0.7
"""Assumed: part of a link's rate that a large collective reaches."""
LATENCY_S = 30e-6
"""Assumed: start of one collective."""
BACKWARD_PART = 2 / 3
"""Of the student's and the loss's time; where they are not compiled, reductions run beside it (`overlap_comm`)."""
CONTEXT_BYTES = 1.5 * 2**30
"""Assumed: CUDA context, NCCL's buffers, fragmentation."""
SCALES_IF = 1.5
"""More GPUs help as long as twice as many are faster by this factor."""


@dataclass(frozen=True)
class Inputs:
    """What the prediction starts from. Seconds are of one GPU, per image unless the name says otherwise."""

    teacher_s: float
    student_s: float
    loss_s: float
    host_s: float
    """Per micro-batch."""
    update_s: float
    """Per step: norm, clipping, AdamW."""
    shard_host_s: float
    """Per micro-batch, added by the hooks of a sharded or offloaded teacher."""
    flops: float
    """Of one image in a step."""
    trained_params: int
    """Student and losses."""
    teacher_params: int
    gathers: int
    """Collectives of one forward of a sharded teacher: one per block and one for the rest."""
    gathered_params: int
    """Of a sharded teacher, on a GPU at a time at most: what DeepSpeed uses and what it gathers ahead."""
    activation_bytes: float
    """Kept per image of a micro-batch, of student and losses."""
    image_bytes: float
    """Per image of a micro-batch: the image itself, in every form that lives at the same time."""
    is_compiled: bool
    """The student as a whole: then all its gradients come when the backward pass is over."""
    has_average: bool
    bucket_elements: int
    """DeepSpeed's reduce_bucket_size."""


@dataclass(frozen=True)
class Layout:
    """Who computes what."""

    nodes: int
    gpus_per_node: int
    micro_batch: int
    accumulation: int
    """Micro-batches per step and rank."""
    placement: str
    """Of the teacher; "node" shards it over the GPUs of a node only."""

    @property
    def ranks(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def images(self) -> int:
        """Per step over all ranks."""
        return self.ranks * self.micro_batch * self.accumulation


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step on every rank; the three last are what is left after overlap."""

    teacher: float
    student: float
    loss: float
    host: float
    update: float
    gradients: float
    weights: float
    gathers: float

    @property
    def total(self) -> float:
        """Of the step."""
        return sum(vars(self).values())

    @property
    def communication(self) -> float:
        """What is not hidden."""
        return self.gradients + self.weights + self.gathers


def link_bytes_per_s(hardware: Hardware, *, nodes: int, gpus_per_node: int) -> float:
    """What one rank's ring gets: NVLink within a node; between nodes the ring runs over all network cards of a node."""
    between = hardware.network_gb_per_s * gpus_per_node
    slowest = min(hardware.nvlink_gb_per_s, between) if nodes > 1 else hardware.nvlink_gb_per_s
    return EFFICIENCY * slowest * 1e9


def bytes_per_step(layout: Layout, *, trained_params: int, teacher_params: int) -> dict[str, float]:
    """What each rank sends in a step: gradients, weights, the teacher's gathers.

    `benchmarks/scaling.py` holds it against what network interfaces count.
    """
    part = (layout.ranks - 1) / layout.ranks
    within = layout.gpus_per_node if layout.placement == "node" else layout.ranks
    teacher = 0 if layout.placement == "replica" else (within - 1) / within * 2 * teacher_params
    return {
        "gradients": layout.accumulation * 2 * part * 4 * trained_params,
        "weights": part * 2 * trained_params,
        "gathers": layout.accumulation * teacher,
    }


def step_time(inputs: Inputs, layout: Layout, hardware: Hardware) -> StepTime:
    """The parts of one step."""
    k, m = layout.accumulation, layout.micro_batch
    link = link_bytes_per_s(hardware, nodes=layout.nodes, gpus_per_node=layout.gpus_per_node)
    nodes = 1 if layout.placement == "node" else layout.nodes
    teacher_link = link_bytes_per_s(hardware, nodes=nodes, gpus_per_node=layout.gpus_per_node)
    sent = bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    buckets = math.ceil(inputs.trained_params / inputs.bucket_elements)
    is_alone = layout.ranks == 1
    gradients = 0 if is_alone else sent["gradients"] / k / link + buckets * LATENCY_S
    backward = 0 if inputs.is_compiled else BACKWARD_PART * m * (inputs.student_s + inputs.loss_s)
    # The last bucket is full when the backward pass is over; the first gather starts when the forward does.
    gradients_left = max(gradients - backward, gradients / buckets)
    gathers = sent["gathers"] / k / teacher_link + (inputs.gathers * LATENCY_S if sent["gathers"] else 0)
    if layout.placement == "offload":
        gathers += 2 * inputs.teacher_params / layout.ranks / (EFFICIENCY * hardware.pcie_gb_per_s * 1e9)
    gathers_left = max(gathers - m * inputs.teacher_s, gathers / inputs.gathers)
    return StepTime(
        teacher=k * m * inputs.teacher_s,
        student=k * m * inputs.student_s,
        loss=k * m * inputs.loss_s,
        host=k * (inputs.host_s + (inputs.shard_host_s if layout.placement != "replica" else 0)),
        update=inputs.update_s,
        gradients=k * gradients_left,
        weights=0 if is_alone else sent["weights"] / link + LATENCY_S,
        gathers=k * gathers_left,
    )


def images_per_s(inputs: Inputs, layout: Layout, hardware: Hardware) -> float:
    """Of all ranks together."""
    return layout.images / step_time(inputs, layout, hardware).total


def memory_bytes(inputs: Inputs, layout: Layout) -> dict[str, float]:
    """Device memory of one rank: student, optimizer, buffers, teacher, images, activations, the rest."""
    trained, part = inputs.trained_params, 1 / layout.ranks
    gathered = 2 * inputs.gathered_params
    whole = 2 * inputs.teacher_params
    within = layout.gpus_per_node if layout.placement == "node" else layout.ranks
    shard = whole / within + (0 if layout.ranks == 1 else gathered)  # one rank keeps what it gathers, as its own
    overlaps = layout.ranks > 1 and not inputs.is_compiled
    return {
        "student, bf16 weights and gradients": 4 * trained,
        "fp32 weights, gradient, AdamW's moments" + (", average" if inputs.has_average else ""): (
            (16 + 4 * inputs.has_average) * trained * part
        ),
        # A bf16 buffer, another to fill while the first is sent, and one in fp32 that is sent.
        "gradient buckets": (8 if overlaps else 6) * min(inputs.bucket_elements, trained),
        "teacher": {"replica": whole, "offload": gathered}.get(layout.placement, shard),
        "images": layout.micro_batch * inputs.image_bytes,
        "activations": layout.micro_batch * inputs.activation_bytes,
        "context and fragmentation": CONTEXT_BYTES,
    }


def scaling(inputs: Inputs, layouts: list[Layout], hardware: Hardware) -> tuple[list[float], int | None]:
    """images/s of each layout (each twice the ranks of the one before), and the index of the last that pays to double.

    Returns:
        The speeds, and the index of the first layout from which doubling brings less than SCALES_IF; None if there is
        none.
    """
    speeds = [images_per_s(inputs, layout, hardware) for layout in layouts]
    stops = [i for i, (now, twice) in enumerate(zip(speeds, speeds[1:])) if twice < SCALES_IF * now]
    return speeds, stops[0] if stops else None
