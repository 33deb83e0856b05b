"""Relations instead of values: how a token resembles those of its image, and an image those of a queue."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo, check_same_grid
from vitkd_ds.losses.precision import at_least_fp32


class Relation(LossPart):
    """The term `relation`: `relation_local` of the final patch tokens, and `relation_global` of the pooled features.

    The queue holds the teacher's pooled features of the last images of all ranks, those of this micro-batch among them,
    the same on every rank, so that a checkpoint has one. So an image is compared with itself too, as in the source: of
    a sharp teacher that one entry is nearly all. Until the queue is full, only what has come counts. The student's
    features are mapped to the teacher's width by a linear layer each.

    **Source**: lightly-train's distillation v3, `distillationv3.py`.

    **Differs**: one queue for all ranks, where the source has one per GPU; rows of the queue that are still empty do
    not count, where the source compares with their zeros; models must have one patch grid, where the source resizes the
    student's projected tokens to the teacher's; the layers' biases start at 0.
    """

    _keep_in_fp32_modules_strict = ["queue_QD"]  # read by DeepSpeed, which rounds other buffers to bf16

    def __init__(self, term: Any, pair: PairInfo, *others: Any) -> None:
        super().__init__(term, pair, *others)
        check_same_grid(pair, "relation")
        self.patches = nn.Linear(pair.student_dim, pair.teacher_dim)
        self.pooled = nn.Linear(pair.student_dim, pair.teacher_dim)
        for layer in (self.patches, self.pooled):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.register_buffer("queue_QD", torch.zeros(term.queue, pair.teacher_dim))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Features, teacher: Features | None, targets_BK: Tensor) -> dict[str, Tensor]:
        """See `local_relation_loss` and `global_relation_loss`."""
        temperature = self.term.temperature
        local = local_relation_loss(self.patches(student.final_BPD), teacher.final_BPD, temperature=temperature)
        self._remember(self.gather(teacher.pooled_BD.detach()))
        is_filled_Q = torch.arange(len(self.queue_QD), device=self.queue_QD.device) < self.num_seen
        pooled = [self.pooled(student.pooled_BD), teacher.pooled_BD]
        image = global_relation_loss(*pooled, self.queue_QD, is_filled_Q, temperature=temperature)
        return {"relation_local": local, "relation_global": image}

    def _remember(self, teacher_BD: Tensor) -> None:
        """Put features of all ranks into the queue in place of its oldest."""
        size = len(self.queue_QD)
        newest_BD = F.normalize(at_least_fp32(teacher_BD[-size:]), dim=1)
        places_B = (self.num_seen + torch.arange(len(newest_BD), device=newest_BD.device)) % size
        self.queue_QD.index_copy_(0, places_B, newest_BD.to(self.queue_QD.dtype))
        self.num_seen += len(newest_BD)


def local_relation_loss(student_BPD: Tensor, teacher_BPD: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Compute KL(r_T || r_S), mean over tokens and images: r is the softmax of a token's cosines with all tokens of its
    image, itself included, divided by the temperature.

    Args:
        student_BPD: patch tokens of any width; they get the gradient.
        teacher_BPD: the teacher's, of any width; they are detached.
        temperature: divisor of the cosines.

    Returns:
        fp32 scalar.

    **Source**: lightly-train's distillation v3, the local loss.

    **Differs**: at least fp32.
    """
    rows = []
    for tokens_BPD in (student_BPD, teacher_BPD.detach()):
        unit_BPD = F.normalize(at_least_fp32(tokens_BPD), dim=2)
        with torch.autocast(unit_BPD.device.type, enabled=False):
            cosines_BPP = unit_BPD @ unit_BPD.transpose(1, 2)
        rows.append(F.log_softmax(cosines_BPP / temperature, dim=2).flatten(0, 1))
    return F.kl_div(*rows, reduction="batchmean", log_target=True)


def global_relation_loss(
    student_BD: Tensor,
    teacher_BD: Tensor,
    queue_QD: Tensor,
    is_filled_Q: Tensor | None = None,
    *,
    temperature: float = 0.07,
) -> Tensor:
    """Compute KL(r_T || r_S), mean over images: r is the softmax of an image's cosines with the images of a queue,
    divided by the temperature.

    Args:
        student_BD: pooled features; they get the gradient.
        teacher_BD: the teacher's; they are detached.
        queue_QD: the teacher's normalised features of the images of a queue.
        is_filled_Q: which rows of the queue count; None is all.
        temperature: divisor of the cosines.

    Returns:
        fp32 scalar.

    **Source**: lightly-train's distillation v1 and v3, the global loss.

    **Differs**: at least fp32.
    """
    rows = []
    for features_BD in (student_BD, teacher_BD.detach()):
        with torch.autocast(features_BD.device.type, enabled=False):
            cosines_BQ = F.normalize(at_least_fp32(features_BD), dim=1) @ at_least_fp32(queue_QD).T
        cosines_BQ = cosines_BQ / temperature
        if is_filled_Q is not None:
            cosines_BQ = cosines_BQ.masked_fill(~is_filled_Q, -1e4)  # exp of it is 0, and 0 x log 0 no nan
        rows.append(F.log_softmax(cosines_BQ, dim=1))
    return F.kl_div(*rows, reduction="batchmean", log_target=True)
