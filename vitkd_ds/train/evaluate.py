"""Exact evaluation: each validation image counts once, for any number of ranks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import MappingProxyType
from typing import Any, Callable, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitkd_ds.engine import ranks
from vitkd_ds.models.features import Features, tap_features
from vitkd_ds.models.fp32 import fp32_products
from vitkd_ds.models.normalization import Normalization
from vitkd_ds.train import watchdog
from vitkd_ds.train.agreement import Agreement, Watch
from vitkd_ds.train.predictions import Predictions
from vitkd_ds.train.probe import knn_votes

T = TypeVar("T")
MICRO_BATCHES_PER_LOOK = 8
"""Micro-batches between stop checks; each check waits for the device and all ranks."""


class GivenUp(Exception):
    """Raised to end an evaluation because `must_stop` returned True."""


@torch.no_grad()
def evaluate(
    student: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    teachers: Mapping[str, Callable[[Tensor], Features]] = MappingProxyType({}),
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
    predictions: Predictions | None = None,
) -> dict[str, float] | None:
    """Evaluate a timm model in fp32. Collective: every rank must call it, with a loader of the same length.

    Args:
        student: model to export, in fp32, on the loader's device.
        loader: validation loader; rows with label -1 are padding and do not count.
        normalization: the student's input normalisation.
        teachers: name to a function from images (values 0 to 255) to features.
        must_stop: collective function, called every few micro-batches. If it returns True, the evaluation ends.
        allow_tf32: let a GPU multiply in TF32 (10 mantissa bits), which is several times faster.
        predictions: object that collects each image's predictions; None discards the predictions.

    Returns:
        A dict, or None if `must_stop` ended the evaluation. The dict contains `num_images` and, in percent, the
        student's `top1` and `top5`. For each teacher it also contains `teacher_top1` in percent, `agreement`
        (percentage of images with the same most likely class in both models), and `kl` (mean of KL(teacher ||
        student) in nats). These keys belong to the first teacher; the keys of other teachers end in /NAME.

    Raises:
        ValueError: the loader yields only padding.
    """
    device = next(student.parameters()).device
    sums: Tensor = torch.zeros(3 + 3 * len(teachers), dtype=torch.float64, device=device)
    student.eval()
    try:
        for images_BCHW, labels_B in _looked_at(loader, must_stop):
            # Only around the student: another precision setting would recompile a compiled teacher.
            with fp32_products(allow_tf32):
                student_BK = student(normalization.apply(images_BCHW, torch.float32))
            answers = {name: teacher(images_BCHW).logits_BK.float() for name, teacher in teachers.items()}
            sums += _count(student_BK, answers.values(), labels_B)
            if predictions is not None:
                predictions.add(student_BK, answers, labels_B)
    except GivenUp:
        return None
    # Ranks exchange sums, not means, because they may count different numbers of images.
    count, top1, top5, *others = ranks.sum_over_ranks(sums).tolist()
    _check_count(count)
    result = {"num_images": count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    for name, teacher_top1, agreement, kl in zip(teachers, others[::3], others[1::3], others[2::3]):
        values = {"teacher_top1": 100 * teacher_top1 / count, "agreement": 100 * agreement / count, "kl": kl / count}
        result |= named(values, name, teachers)
    return result


def named(values: Mapping[str, T], name: str, names: Iterable[str]) -> dict[str, T]:
    """Return a teacher's values with the keys of the log: KEY for the first teacher, KEY/NAME for other teachers."""
    return {key if name == next(iter(names)) else f"{key}/{name}": value for key, value in values.items()}


@torch.no_grad()
def evaluate_features(
    student: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    teachers: Mapping[str, Callable[[Tensor], Features]],
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
    watch: Mapping[str, Sequence[Watch]] = MappingProxyType({}),
) -> dict[str, float] | None:
    """Compare a timm model's features, computed in fp32, with the features of its teachers. Collective.

    The model may have a classifier or not. Labels are used only to recognise padding.

    Args:
        teachers: name to a function from images (values 0 to 255) to features with pooled_BD and final_BPD.
        watch: teacher name to functions that return further metrics; see `Agreement`.
        student, loader, normalization, must_stop, allow_tf32: see `evaluate`.

    Returns:
        A dict, or None if `must_stop` ended the evaluation. The dict contains `num_images` and, for each teacher, the
        values of `Agreement.result`. The keys of all teachers except the first end in /NAME.

    Raises:
        ValueError: the loader yields only padding.
    """
    num_images = torch.zeros((), dtype=torch.float64, device=next(student.parameters()).device)
    agreements = {name: Agreement(watch.get(name, ())) for name in teachers}
    student.eval()
    try:
        for images_BCHW, labels_B in _looked_at(loader, must_stop):
            with fp32_products(allow_tf32):
                features = tap_features(student, normalization.apply(images_BCHW, torch.float32), ())
            for name, teacher in teachers.items():
                agreements[name].add(features, teacher(images_BCHW), labels_B >= 0)
            num_images += (labels_B >= 0).sum()
    except GivenUp:
        return None
    count = ranks.sum_over_ranks(num_images).item()
    _check_count(count)
    result = {"num_images": count}
    for name, agreement in agreements.items():
        result |= named(agreement.result(), name, teachers)
    return result


def evaluate_knn(
    student: nn.Module,
    loaders: tuple[Any, Any],
    *,
    normalization: Normalization,
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
) -> dict[str, float] | None:
    """Classify labelled images by k-NN on a timm model's pooled features, computed in fp32. Collective.

    Args:
        loaders: two loaders. The first yields the neighbours; their features are gathered on every rank. The second
            yields the images to classify.
        student, normalization, must_stop, allow_tf32: see `evaluate`.

    Returns:
        A dict with `knn_top1` in percent, or None if `must_stop` ended the evaluation.
    """
    options = {"normalization": normalization, "must_stop": must_stop, "allow_tf32": allow_tf32}
    try:
        (train_ND, labels_N), (val_MD, labels_M) = (pooled_features(student, each, **options) for each in loaders)
    except GivenUp:
        return None
    train_ND, labels_N = ranks.gather(train_ND), ranks.gather(labels_N)  # padding makes row counts equal on all ranks
    train_ND, labels_N = train_ND[labels_N >= 0], labels_N[labels_N >= 0]
    votes_MK = knn_votes(train_ND, labels_N, val_MD, num_classes=len(loaders[0].classes))
    hits = torch.stack([(votes_MK.argmax(1) == labels_M) & (labels_M >= 0), labels_M >= 0]).double().sum(1)
    num_hits, count = ranks.sum_over_ranks(hits).tolist()
    _check_count(count, "data.knn_val")
    return {"knn_top1": 100 * num_hits / count}


@torch.no_grad()
def pooled_features(
    model: nn.Module,
    loader: Any,
    *,
    normalization: Normalization,
    must_stop: Callable[[], bool] = lambda: False,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return pooled features [N, D] in fp32 and labels [N] of this rank's images, in the loader's order.

    Padding rows are included, with label -1.

    Raises:
        GivenUp: `must_stop` returned True.
    """
    features, labels = [], []
    model.eval()
    for images_BCHW, labels_B in _looked_at(loader, must_stop):
        with fp32_products(allow_tf32):
            features.append(tap_features(model, normalization.apply(images_BCHW, torch.float32), ()).pooled_BD)
        labels.append(labels_B)
    return torch.cat(features), torch.cat(labels)


def _looked_at(loader: Any, must_stop: Callable[[], bool]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield a loader's micro-batches.

    `must_stop` is called every few micro-batches. If it returns True, GivenUp is raised.
    """
    with closing(loader.epoch(0)) as micro_batches:
        for number, micro_batch in enumerate(watchdog.each(micro_batches, "evaluation"), start=1):
            if number % MICRO_BATCHES_PER_LOOK == 0 and must_stop():
                raise GivenUp
            yield micro_batch


def _check_count(count: float, key: str = "data.val") -> None:
    if not count:
        raise ValueError(
            f"no image of {key} could be decoded, but an evaluation needs at least one. Pack the images again."
        )


def _count(student_BK: Tensor, teachers_BK: Iterable[Tensor], labels_B: Tensor) -> Tensor:
    """Return sums over all images except padding.

    The first three are the number of images and the student's top-1 and top-5 hits. Three sums per teacher follow: its
    top-1 hits, its agreements with the student and its KL divergence.
    """
    is_real_B = labels_B >= 0
    best = student_BK.topk(min(5, student_BK.shape[1]), dim=1).indices
    is_hit = best == labels_B[:, None]
    columns = [is_real_B, is_hit[:, 0], is_hit.any(1)]
    for teacher_BK in teachers_BK:
        teacher_best_B = teacher_BK.argmax(1)
        kl_B = F.kl_div(student_BK.log_softmax(1), teacher_BK.log_softmax(1), reduction="none", log_target=True).sum(1)
        columns += [teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]
    return (torch.stack([column.double() for column in columns]) * is_real_B).sum(1)
