"""Evaluate a model exactly: each validation image is counted once at any number of ranks."""

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
    """An evaluation was asked to stop."""


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
    """Evaluate a plain timm model in fp32. Collective: all ranks call it, with loaders of the same length.

    Args:
        student: the model that will be exported, in fp32, on the loader's device; `normalization` is its own.
        loader: gives padding rows the label -1; they count for nothing.
        teachers: images 0..255 -> features, by the teacher's name; without any there is no agreement.
        must_stop: collective; asked every few micro-batches whether to give up.
        allow_tf32: let a GPU multiply in TF32, with 10 bits of mantissa, several times faster.
        predictions: gets the answers for each image; None leaves them.

    Returns:
        Percent: `top1`, `top5` and with a teacher `teacher_top1`, `agreement` (the same most likely class); `kl`:
        KL(teacher || student) in nats, mean over images. Those of further teachers end in /NAME. `num_images`. None if
        it was given up.

    Raises:
        ValueError: there was no image that counts.
    """
    device = next(student.parameters()).device
    sums: Tensor = torch.zeros(3 + 3 * len(teachers), dtype=torch.float64, device=device)
    student.eval()
    try:
        for images_BCHW, labels_B in _looked_at(loader, must_stop):
            # Around the student alone: for a compiled teacher another precision would be another graph.
            with fp32_products(allow_tf32):
                student_BK = student(normalization.apply(images_BCHW, torch.float32))
            answers = {name: teacher(images_BCHW).logits_BK.float() for name, teacher in teachers.items()}
            sums += _count(student_BK, answers.values(), labels_B)
            if predictions is not None:
                predictions.add(student_BK, answers, labels_B)
    except GivenUp:
        return None
    # Sums, not means, travel between the ranks: they may have different numbers of images that count.
    count, top1, top5, *others = ranks.sum_over_ranks(sums).tolist()
    _check_count(count)
    result = {"num_images": count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    for name, teacher_top1, agreement, kl in zip(teachers, others[::3], others[1::3], others[2::3]):
        values = {"teacher_top1": 100 * teacher_top1 / count, "agreement": 100 * agreement / count, "kl": kl / count}
        result |= named(values, name, teachers)
    return result


def named(values: Mapping[str, T], name: str, names: Iterable[str]) -> dict[str, T]:
    """Return a teacher's values as the log has them: those of the first teacher by their names, others as KEY/NAME."""
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
    """Compare the features of a plain timm model in fp32, with or without a classifier, with teachers'; labels count
    for nothing but padding. Collective, and the arguments are those of `evaluate`.

    Args:
        teachers: images 0..255 -> features with pooled_BD and final_BPD, by the teacher's name.
        watch: further metrics by the teacher's name, see `Agreement`.

    Returns:
        `num_images`, and what `Agreement` gives: `cka`, `cka_patches` where both have as many patches, and the metrics
        of `watch`. Those of all teachers but the first end in /NAME. None if it was given up.

    Raises:
        ValueError: there was no image that counts.
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
    """Classify labelled images by k-NN on the pooled features of a plain timm model in fp32. Collective, and the
    arguments are those of `evaluate`.

    Args:
        loaders: of the neighbours, whose features every rank gets, and of the images that are asked for.

    Returns:
        `knn_top1`, percent. None if it was given up.
    """
    options = {"normalization": normalization, "must_stop": must_stop, "allow_tf32": allow_tf32}
    try:
        (train_ND, labels_N), (val_MD, labels_M) = (pooled_features(student, each, **options) for each in loaders)
    except GivenUp:
        return None
    train_ND, labels_N = ranks.gather(train_ND), ranks.gather(labels_N)  # as many of each rank, padding among them
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
    """Pooled features [N, D] in fp32 and labels [N] of this rank's images of a validation loader, in their order, with
    padding rows, of label -1. Raises GivenUp if `must_stop` says so."""
    features, labels = [], []
    model.eval()
    for images_BCHW, labels_B in _looked_at(loader, must_stop):
        with fp32_products(allow_tf32):
            features.append(tap_features(model, normalization.apply(images_BCHW, torch.float32), ()).pooled_BD)
        labels.append(labels_B)
    return torch.cat(features), torch.cat(labels)


def _looked_at(loader: Any, must_stop: Callable[[], bool]) -> Iterator[tuple[Tensor, Tensor]]:
    """The micro-batches of a loader. Raises GivenUp between two if `must_stop`, which is asked every few, says so."""
    with closing(loader.epoch(0)) as micro_batches:
        for number, micro_batch in enumerate(watchdog.each(micro_batches, "evaluation"), start=1):
            if number % MICRO_BATCHES_PER_LOOK == 0 and must_stop():
                raise GivenUp
            yield micro_batch


def _check_count(count: float, key: str = "data.val") -> None:
    if not count:
        raise ValueError(
            f"an evaluation must count at least one image, found none in {key} that could be decoded: pack it again"
        )


def _count(student_BK: Tensor, teachers_BK: Iterable[Tensor], labels_B: Tensor) -> Tensor:
    """Sums over the images that count: three columns of `evaluate`, and three for each teacher."""
    is_real_B = labels_B >= 0
    best = student_BK.topk(min(5, student_BK.shape[1]), dim=1).indices
    is_hit = best == labels_B[:, None]
    columns = [is_real_B, is_hit[:, 0], is_hit.any(1)]
    for teacher_BK in teachers_BK:
        teacher_best_B = teacher_BK.argmax(1)
        kl_B = F.kl_div(student_BK.log_softmax(1), teacher_BK.log_softmax(1), reduction="none", log_target=True).sum(1)
        columns += [teacher_best_B == labels_B, teacher_best_B == best[:, 0], kl_B]
    return (torch.stack([column.double() for column in columns]) * is_real_B).sum(1)
