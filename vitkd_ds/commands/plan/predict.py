"""Analytical model of a run on a cluster: time, communicated bytes and memory of a step.

Its inputs are speeds measured on one GPU and figures from data sheets. One micro-batch of m images takes

    m (teacher + student + loss) + host + exposed communication

where `teacher`, `student` and `loss` are times per image, and `host` is the fixed time of launches and hooks. `host`
is the time of a measured step minus its update and minus these three components, which were measured separately.
Exposed communication is the part that does not overlap with computation. A step consists of k micro-batches, the
update, and one gather of the updated weights.

In a ring of N ranks, each rank sends 2 (N-1)/N S bytes to all-reduce S bytes, and (N-1)/N S bytes to gather them.
DeepSpeed 0.19.8 with ZeRO-2 all-reduces the fp32 gradients of every micro-batch, even with `reduce_scatter`, and each
rank keeps its partition. The student's bf16 weights are gathered once per step, and a sharded teacher's weights once
per micro-batch.
"""

import math
from dataclasses import dataclass

from vitkd_ds.commands.plan.hardware import Hardware

EFFICIENCY = 0.7
"""Assumed fraction of a link's rate that a large collective reaches."""
LATENCY_S = 30e-6
"""Assumed start-up time of a collective, in seconds."""
BACKWARD_PART = 2 / 3
"""Fraction of the student's and the loss's time that backward takes. Without compilation, gradient reductions overlap
with backward (`overlap_comm`)."""
CONTEXT_BYTES = 1.5 * 2**30
"""Assumed bytes for the CUDA context, NCCL's buffers and fragmentation."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a prediction, for one recipe on one kind of GPU."""

    teacher_s: float
    """Time of all teachers per image, in seconds. student_s and loss_s are the times of the student and the losses."""
    student_s: float
    loss_s: float
    others_s: float
    """Time per image of the loss terms that compare tokens, except ViTKD, in seconds; included in loss_s."""
    host_s: float
    """Fixed time per micro-batch, in seconds."""
    update_s: float
    """Fixed time per step for gradient norm, clipping and optimizer, in seconds."""
    shard_host_s: float
    """Additional time per micro-batch for the hooks of a sharded or offloaded teacher, in seconds."""
    flops: float
    """Floating-point operations of a training step per image."""
    trained_params: int
    """Parameters of the student and of the losses."""
    student_params: int
    teacher_params: int
    gathers: int
    """Collectives in one forward of all sharded teachers: one per block, and one per teacher for the other weights."""
    gathered_params: int
    """Maximum number of a sharded teacher's parameters that are gathered on a GPU, in use or prefetched."""
    offloaded_params: int
    """The same number for an offloaded teacher."""
    activation_bytes: float
    """Bytes that student and losses keep for backward, per image."""
    image_bytes: float
    """Bytes per input image, including all copies that exist at the same time."""
    is_compiled: bool
    """Whether the student is compiled as a whole. If so, all its gradients arrive at the end of backward."""
    state_bytes: int
    """Bytes of optimizer state and moving average, over all ranks."""
    bucket_elements: int
    """DeepSpeed's reduce_bucket_size."""
    teacher_source: str = ""
    """Text that tells where teacher_s is from: a row of benchmarks/RESULTS.md, or an assumed fraction of the peak."""
    student_source: str = ""


@dataclass(frozen=True)
class Layout:
    """Distribution of a training step over the GPUs."""

    nodes: int
    gpus_per_node: int
    micro_batch: int
    accumulation: int
    """Micro-batches per step and rank."""
    placement: str
    """Placement of all teachers: replica, shard or offload."""

    @property
    def ranks(self) -> int:
        """Number of GPUs over all nodes."""
        return self.nodes * self.gpus_per_node


def link_bytes_per_s(hardware: Hardware, *, nodes: int, gpus_per_node: int) -> float:
    """Return the rate of a ring over all GPUs, in bytes/s.

    On one node, NVLink determines the rate. On several nodes, it is the rate of NVLink or of all network cards of a
    node together, whichever is lower.
    """
    between = hardware.network_gb_per_s * gpus_per_node if nodes > 1 else math.inf
    return EFFICIENCY * min(hardware.nvlink_gb_per_s, between) * 1e9


def bytes_per_step(layout: Layout, *, trained_params: int, teacher_params: int) -> dict[str, float]:
    """Return the bytes that each rank sends in a step, by purpose.

    `benchmarks/scaling.py` compares these numbers with network counters.
    """
    part = (layout.ranks - 1) / layout.ranks
    teacher = 0 if layout.placement == "replica" else part * 2 * teacher_params
    return {
        "gradients": layout.accumulation * 2 * part * 4 * trained_params,
        "weights": part * 2 * trained_params,
        "gathers": layout.accumulation * teacher,
    }


def copied_bytes(layout: Layout, *, teacher_params: int) -> float:
    """Return the bytes that each rank copies from CPU memory in a step.

    With placement "offload", this is the rank's shard of the teacher for each micro-batch; otherwise it is 0.
    """
    return layout.accumulation * 2 * teacher_params / layout.ranks if layout.placement == "offload" else 0


def step_parts(inputs: Inputs, layout: Layout, hardware: Hardware) -> dict[str, float]:
    """Return the time of each component of a step, in seconds.

    The last three components are communication. Their times include only the part that computation does not hide.
    """
    k, m = layout.accumulation, layout.micro_batch
    is_alone = layout.ranks == 1
    sent = bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    link = link_bytes_per_s(hardware, nodes=layout.nodes, gpus_per_node=layout.gpus_per_node)
    # Buckets are reduced during backward, but the last one fills only at the end of backward.
    buckets = math.ceil(inputs.trained_params / inputs.bucket_elements)
    gradients = 0 if is_alone else sent["gradients"] / k / link + buckets * LATENCY_S
    backward = 0 if inputs.is_compiled else BACKWARD_PART * m * (inputs.student_s + inputs.loss_s)
    gradients_left = max(gradients - backward, gradients / buckets)
    # Blocks are gathered while the teacher computes, but the teacher must wait for the first block.
    gathers = sent["gathers"] / k / link + (inputs.gathers * LATENCY_S if sent["gathers"] else 0)
    copied = copied_bytes(layout, teacher_params=inputs.teacher_params)
    gathers += copied / k / (EFFICIENCY * hardware.pcie_gb_per_s * 1e9)
    gathers_left = max(gathers - m * inputs.teacher_s, gathers / inputs.gathers)
    return {
        "teacher": k * m * inputs.teacher_s,
        "student": k * m * inputs.student_s,
        "loss": k * m * inputs.loss_s,
        "host": k * (inputs.host_s + (inputs.shard_host_s if layout.placement != "replica" else 0)),
        "update": inputs.update_s,
        "gradients": k * gradients_left,
        "weights": 0 if is_alone else sent["weights"] / link + LATENCY_S,
        "gathers": k * gathers_left,
    }


def images_per_s(inputs: Inputs, layout: Layout, hardware: Hardware) -> float:
    """Return the throughput over all ranks, images/s."""
    images = layout.ranks * layout.micro_batch * layout.accumulation
    return images / sum(step_parts(inputs, layout, hardware).values())


def memory_bytes(inputs: Inputs, layout: Layout) -> dict[str, float]:
    """Return the device memory of one rank in bytes, by purpose."""
    trained = inputs.trained_params
    whole = 2 * inputs.teacher_params
    is_alone = layout.ranks == 1
    teacher = {
        "replica": whole,
        "shard": whole / layout.ranks + (0 if is_alone else 2 * inputs.gathered_params),  # no gathering on one rank
        # Two blocks, and a send buffer for this rank's shard of the second one.
        "offload": 2 * inputs.offloaded_params + (0 if is_alone else inputs.offloaded_params / layout.ranks),
    }
    overlaps = not is_alone and not inputs.is_compiled
    return {
        "student, bf16 weights and gradients": 4 * trained,
        "fp32 weights, gradient, optimizer state": (8 * trained + inputs.state_bytes) / layout.ranks,
        "fp32 copy of the student for evaluation": 4 * inputs.student_params,
        # A bf16 buffer, and a second one to fill while the first is sent, which DeepSpeed allocates in full size for a
        # student of any size; and an fp32 send buffer.
        "gradient buckets": (4 if overlaps else 2) * inputs.bucket_elements + 4 * min(inputs.bucket_elements, trained),
        "teacher": teacher[layout.placement],
        "images": layout.micro_batch * inputs.image_bytes,
        "activations": layout.micro_batch * inputs.activation_bytes,
        "context and fragmentation": CONTEXT_BYTES,
    }
