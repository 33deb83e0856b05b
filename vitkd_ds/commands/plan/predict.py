"""Predict a run on a cluster: seconds and bytes of a step, and memory.

A model on paper, from speeds measured on one GPU and the makers' figures. One micro-batch of m images takes

    m (teacher + student + loss) + host + the communication that arithmetic does not hide

where `host` is what the measured step takes beside its update and those three measured alone: launches, hooks. A step
is k micro-batches, the update, and one gather of the updated weights.

DeepSpeed 0.19.8 sends, of S bytes over N ranks in a ring: 2 (N-1)/N S for an all-reduce (ZeRO-2 all-reduces the fp32
gradients of every micro-batch, and each rank keeps its part; its `reduce_scatter` does so too), (N-1)/N S for a gather
(bf16 weights once a step; the sharded teacher once a micro-batch).
"""

import math
from dataclasses import dataclass

from vitkd_ds.commands.plan.hardware import Hardware

EFFICIENCY = 0.7
"""Part of a link's rate that a large collective reaches; assumed."""
LATENCY_S = 30e-6
"""Seconds that one collective takes to start; assumed."""
BACKWARD_PART = 2 / 3
"""Backward's part of the time of student and loss, beside which reductions run (`overlap_comm`) if not compiled."""
CONTEXT_BYTES = 1.5 * 2**30
"""CUDA context, NCCL's buffers and fragmentation, bytes; assumed."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a prediction, for one recipe on one kind of GPU."""

    teacher_s: float
    """Seconds per image, as for student_s and loss_s."""
    student_s: float
    loss_s: float
    others_s: float
    """Part of loss_s that is of terms of tokens other than ViTKD."""
    host_s: float
    """Fixed seconds per micro-batch."""
    update_s: float
    """Fixed seconds per step: norm, clipping, optimizer."""
    shard_host_s: float
    """Seconds per micro-batch that the hooks of a sharded or offloaded teacher add."""
    flops: float
    """Operations of one image in a step."""
    trained_params: int
    teacher_params: int
    gathers: int
    """Collectives in one forward of a sharded teacher: one per block and one for the rest."""
    gathered_params: int
    """Most parameters of a sharded teacher on one GPU at a time: in use, and gathered ahead."""
    offloaded_params: int
    """Most parameters of an offloaded teacher on one GPU at a time."""
    activation_bytes: float
    """Bytes that student and losses keep for backward, per image of a micro-batch."""
    image_bytes: float
    """Bytes of an image of a micro-batch itself, in every form that lives at the same time."""
    is_compiled: bool
    """Whether the student is compiled as a whole; then all its gradients come when the backward pass is over."""
    state_bytes: int
    """Optimizer state and moving average of all ranks."""
    bucket_elements: int
    """DeepSpeed's reduce_bucket_size."""
    teacher_source: str = ""
    """Where teacher_s comes from: a measured row, or an assumed part of the peak."""
    student_source: str = ""


@dataclass(frozen=True)
class Layout:
    """Spread of a step over the GPUs."""

    nodes: int
    gpus_per_node: int
    micro_batch: int
    accumulation: int
    """Micro-batches per step and rank."""
    placement: str
    """The teacher's: replica, shard or offload."""

    @property
    def ranks(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node


def link_bytes_per_s(hardware: Hardware, *, nodes: int, gpus_per_node: int) -> float:
    """Rate of one rank's ring, bytes/s: NVLink in a node, and between nodes all network cards of a node if slower."""
    between = hardware.network_gb_per_s * gpus_per_node if nodes > 1 else math.inf
    return EFFICIENCY * min(hardware.nvlink_gb_per_s, between) * 1e9


def bytes_per_step(layout: Layout, *, trained_params: int, teacher_params: int) -> dict[str, float]:
    """Bytes that each rank sends in a step; `benchmarks/scaling.py` holds them against what interfaces count."""
    part = (layout.ranks - 1) / layout.ranks
    teacher = 0 if layout.placement == "replica" else part * 2 * teacher_params
    return {
        "gradients": layout.accumulation * 2 * part * 4 * trained_params,
        "weights": part * 2 * trained_params,
        "gathers": layout.accumulation * teacher,
    }


def copied_bytes(layout: Layout, *, teacher_params: int) -> float:
    """Bytes that each rank copies from the CPU's memory in a step: its part of an offloaded teacher."""
    return layout.accumulation * 2 * teacher_params / layout.ranks if layout.placement == "offload" else 0


def step_parts(inputs: Inputs, layout: Layout, hardware: Hardware) -> dict[str, float]:
    """Predict the seconds of each part of one step; of the three last, only what arithmetic does not hide."""
    k, m = layout.accumulation, layout.micro_batch
    is_alone = layout.ranks == 1
    sent = bytes_per_step(layout, trained_params=inputs.trained_params, teacher_params=inputs.teacher_params)
    link = link_bytes_per_s(hardware, nodes=layout.nodes, gpus_per_node=layout.gpus_per_node)
    # Buckets are reduced while backward runs, but the last one is full only when backward is over.
    buckets = math.ceil(inputs.trained_params / inputs.bucket_elements)
    gradients = 0 if is_alone else sent["gradients"] / k / link + buckets * LATENCY_S
    backward = 0 if inputs.is_compiled else BACKWARD_PART * m * (inputs.student_s + inputs.loss_s)
    gradients_left = max(gradients - backward, gradients / buckets)
    # Blocks are gathered while the teacher computes, but it cannot start before the first one is there.
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
    """Predict the throughput of all ranks, images/s."""
    images = layout.ranks * layout.micro_batch * layout.accumulation
    return images / sum(step_parts(inputs, layout, hardware).values())


def memory_bytes(inputs: Inputs, layout: Layout) -> dict[str, float]:
    """Predict the device memory of one rank, bytes by purpose."""
    trained = inputs.trained_params
    whole = 2 * inputs.teacher_params
    is_alone = layout.ranks == 1
    teacher = {
        "replica": whole,
        "shard": whole / layout.ranks + (0 if is_alone else 2 * inputs.gathered_params),  # one rank gathers nothing
        # Two blocks, and on its way to the other ranks this one's part of the second.
        "offload": 2 * inputs.offloaded_params + (0 if is_alone else inputs.offloaded_params / layout.ranks),
    }
    overlaps = not is_alone and not inputs.is_compiled
    return {
        "student, bf16 weights and gradients": 4 * trained,
        "fp32 weights, gradient, optimizer state": (8 * trained + inputs.state_bytes) / layout.ranks,
        # A bf16 buffer, another to fill while the first is sent, and one in fp32 that is sent.
        "gradient buckets": (8 if overlaps else 6) * min(inputs.bucket_elements, trained),
        "teacher": teacher[layout.placement],
        "images": layout.micro_batch * inputs.image_bytes,
        "activations": layout.micro_batch * inputs.activation_bytes,
        "context and fragmentation": CONTEXT_BYTES,
    }
