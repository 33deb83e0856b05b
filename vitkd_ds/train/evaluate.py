"""Exact top-1, top-5 and agreement with the teacher, each validation image counted once at any world size."""

from contextlib import closing
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.engine import ranks
from vitkd_ds.models.features import Features
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train import watchdog

MICRO_BATCHES_PER_LOOK = 8
"""Between two looks whether to go on; each waits for the device and all ranks."""


@torch.no_grad()
def evaluate(
    student: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    teacher: Callable[[Tensor], Features] | None = None,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Evaluate a plain timm model in fp32. Collective: all ranks call it, with loaders of the same length.

    Args:
        student: the model that will be exported, in fp32 and eval mode, on the loader's device.
        loader: validation loader; padding rows carry the label -1 and count for nothing.
        normalization: the student's.
        teacher: images 0..255 -> features; None gives no agreement.
        must_stop: collective; asked every few micro-batches whether to give up.

    Returns:
        Percent: `top1`, `top5` and with a teacher `teacher_top1`, `agreement` (the same most likely class); `kl`:
        KL(teacher || student) in nats, mean over images. `num_images`. None if it was given up.

    Raises:
        ValueError: there was no image that counts.
    """
    device = next(student.parameters()).device
    sums: Tensor = torch.zeros(6, dtype=torch.float64, device=device)
    student.eval()
    with closing(loader.epoch(0)) as micro_batches:
        for number, (images_BCHW, labels_B) in enumerate(watchdog.each(micro_batches, "evaluation"), start=1):
            if number % MICRO_BATCHES_PER_LOOK == 0 and must_stop():
                return None
            student_BK = student(normalization.apply(images_BCHW, torch.float32))
            teacher_BK = teacher(images_BCHW).logits_BK.float() if teacher else None
            sums += _count(student_BK, teacher_BK, labels_B)
    count, top1, top5, teacher_top1, agreement, kl = ranks.sum_over_ranks(sums).tolist()
    if not count:
        raise ValueError(
            "an evaluation must count at least one image, found none in data.val that could be decoded: pack it again"
        )
    result = {"num_images": count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    if teacher:
        result |= {"teacher_top1": 100 * teacher_top1 / count, "agreement": 100 * agreement / count, "kl": kl / count}
    return result


def _count(student_BK: Tensor, teacher_BK: Tensor | None, labels_B: Tensor) -> Tensor:
    is_real_B = labels_B >= 0
    best = student_BK.topk(min(5, student_BK.shape[1]), dim=1).indices
    is_hit = best == labels_B[:, None]
    columns = [is_real_B, is_hit[:, 0], is_hit.any(1)]
    if teacher_BK is None:
        columns += [torch.zeros_like(is_real_B)] * 3
    else:
        teacher_best_B = teacher_BK.argmax(1)
        kl_B = F.kl_div(student_BK.log_softmax(1), teacher_BK.log_softmax(1), reduction="none", log_target=True).sum(1)
        columns += [teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]
    return (torch.stack([column.double() for column in columns]) * is_real_B).sum(1)
