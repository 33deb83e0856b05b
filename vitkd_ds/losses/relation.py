"""Relation losses: match similarities between tokens of an image, and between images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.losses.part import Features, LossPart, PairInfo, check_same_grid
from vitkd_ds.losses.precision import at_least_fp32


class Relation(LossPart):
    """Loss term `relation`: `relation_local` for final patch tokens plus `relation_global` for pooled features.

    One linear layer maps the student's patch tokens to the teacher's width, and another maps its pooled features.

    `relation_global` compares each image with a queue of the teacher's pooled features. The queue covers the latest
    images of all ranks, including the current micro-batch. All ranks have the same queue, so a checkpoint stores one
    copy. As in the source, each image is also compared with itself. If the teacher's similarities are sharp, this
    comparison dominates. Until the queue is full, only its filled rows count.

    **Source**: lightly-train's distillation v3, `distillationv3.py`.

    **Differs**: all ranks share one queue, while the source has one per GPU. Empty rows of the queue are ignored, while
    the source compares with zeros. Both models need the same patch grid, while the source resizes the student's
    projected tokens to the teacher's grid. The layers' biases start at 0.
    """

    _keep_in_fp32_modules_strict = ["queue_QD"]  # DeepSpeed rounds all other buffers to bf16

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
        """Replace the oldest rows of the queue with these features, which come from all ranks."""
        size = len(self.queue_QD)
        newest_BD = F.normalize(at_least_fp32(teacher_BD[-size:]), dim=1)
        places_B = (self.num_seen + torch.arange(len(newest_BD), device=newest_BD.device)) % size
        self.queue_QD.index_copy_(0, places_B, newest_BD.to(self.queue_QD.dtype))
        self.num_seen += len(newest_BD)


def local_relation_loss(student_BPD: Tensor, teacher_BPD: Tensor, *, temperature: float = 0.07) -> Tensor:
    """Compute KL(r_T || r_S), averaged over tokens and images.

    For each token, r is a softmax over all tokens of its image, including the token itself. Its logits are the cosine
    similarities between the token and these tokens, divided by the temperature. r_T is computed from the teacher's
    tokens, r_S from the student's.

    Args:
        student_BPD: student's patch tokens, of any width; they receive gradients.
        teacher_BPD: teacher's patch tokens, of any width; they are detached.
        temperature: divisor of the cosine similarities.

    Returns:
        fp32 scalar.

    **Source**: lightly-train's distillation v3, the local loss.

    **Differs**: the computation is in at least fp32.
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
    """Compute KL(r_T || r_S), averaged over images.

    For each image, r is a softmax over the queued images. Its logits are the cosine similarities between the image and
    the queued images, divided by the temperature. r_T is computed from the teacher's features of the image, r_S from
    the student's.

    Args:
        student_BD: student's pooled features, mapped to the teacher's width; they receive gradients.
        teacher_BD: teacher's pooled features; they are detached.
        queue_QD: teacher's pooled features of the queued images, L2-normalised.
        is_filled_Q: bool, True for the queue rows that count; None if all rows count.
        temperature: divisor of the cosine similarities.

    Returns:
        fp32 scalar.

    **Source**: lightly-train's distillation v1 and v3, the global loss.

    **Differs**: the computation is in at least fp32.
    """
    rows = []
    for features_BD in (student_BD, teacher_BD.detach()):
        with torch.autocast(features_BD.device.type, enabled=False):
            cosines_BQ = F.normalize(at_least_fp32(features_BD), dim=1) @ at_least_fp32(queue_QD).T
        cosines_BQ = cosines_BQ / temperature
        if is_filled_Q is not None:
            cosines_BQ = cosines_BQ.masked_fill(~is_filled_Q, -1e4)  # finite: with -inf, 0 x log 0 is nan
        rows.append(F.log_softmax(cosines_BQ, dim=1))
    return F.kl_div(*rows, reduction="batchmean", log_target=True)
