"""Measure the mean and covariance of teacher features before training, for loss terms that need them."""

import logging
from contextlib import closing

import torch
from torch import Tensor

from vitkd_ds.config.teachers import teacher_of
from vitkd_ds.engine import ranks
from vitkd_ds.train import watchdog
from vitkd_ds.train.parts import Parts

logger = logging.getLogger(__name__)


def calibrate(parts: Parts) -> None:
    """Set up the loss terms that need the mean and covariance of their teacher's features. Collective.

    Mean and covariance are computed from the first training micro-batches of all ranks. Each of these loss terms stores
    its result in buffers, which checkpoints save. Other loss terms are not changed.
    """
    waiting = {name: module for name, module in parts.engine.distiller.named_children() if module_batches(module)}
    if not waiting:
        return
    schedule = parts.schedule
    run = parts.run
    teacher_by_term = {name: teacher_of(run.losses.terms()[name], run.teachers) for name in waiting}
    num_batches = max(module_batches(module) for module in waiting.values())
    num_batches = min(num_batches, schedule.steps_per_epoch * schedule.accumulation_steps)
    sums: dict[tuple[str, str], Sums] = {}
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        for place in range(num_batches):
            watchdog.enter("calibration", place)
            key = place * ranks.world_size() + ranks.rank()
            images_BCHW, labels_B = ranks.together(lambda: next(micro_batches))
            _, teachers_BCHW, _ = parts.inputs(images_BCHW, labels_B, step=0, place=key)
            # Run each teacher only once, even if several terms use it.
            features = {
                teacher: parts.teachers[teacher](teachers_BCHW[teacher], are_normalized=True)
                for teacher in dict.fromkeys(teacher_by_term.values())
            }
            for name, module in waiting.items():
                if place < module_batches(module):
                    for path, values in module.features_to_calibrate(features[teacher_by_term[name]]).items():
                        if (name, path) not in sums:
                            sums[name, path] = Sums(values)
                        sums[name, path].add(values)
    for (name, path), each in sums.items():
        fix(waiting[name].get_submodule(path), each, where=f"losses.{name}, {path}")
    counts = ", ".join(f"losses.{name}" for name in waiting)
    logger.info("measured teacher feature statistics for %s on %d micro-batches per rank", counts, num_batches)


def fix(target: torch.nn.Module, sums: "Sums", *, where: str) -> None:
    """Compute the transform of one target of a loss term, and store it with equal values on all ranks. Collective.

    Rank 0's buffers are broadcast, because the sign of an eigenvector is arbitrary and could differ between ranks.

    Args:
        sums: sums over the features that the target transforms.
        where: name of the loss term and target, for warnings.
    """
    mean_D, covariance_DD = sums.mean_and_covariance()
    target.fix(mean_D, covariance_DD)
    for buffer in target.buffers():
        ranks.broadcast(buffer)
    num_samples = int(sums.count)  # mean_and_covariance has summed it over all ranks
    if num_samples < getattr(target, "least_samples", 0):
        logger.warning(
            "%s: %d samples are fewer than the %d channels of the teacher, so their covariance is singular. Raise "
            "calibration_batches.",
            where,
            num_samples,
            len(mean_D),
        )
    if not (covariance_DD.diagonal() > 0).any():
        logger.warning("%s: the teacher's feature is the same for all images: are its weights trained?", where)


def module_batches(module: torch.nn.Module) -> int:
    """Return the number of micro-batches for a loss term's mean and covariance; 0 if the term needs neither."""
    return getattr(module, "num_calibrating", 0)


class Sums:
    """Running count, sum and sum of outer products of features [..., D], in fp64.

    All ranks must create an instance together and call `mean_and_covariance` together. The first micro-batch's mean is
    subtracted from all features. Without this shift, rounding would lose the variance of channels with a large mean.
    """

    def __init__(self, like: Tensor) -> None:
        dim, options = like.shape[-1], {"dtype": torch.float64, "device": like.device}
        self.shift_D = ranks.sum_over_ranks(like.flatten(0, -2).double().mean(0)) / ranks.world_size()
        self.count = torch.zeros((), **options)
        self.sum_D, self.products_DD = torch.zeros(dim, **options), torch.zeros(dim, dim, **options)

    def add(self, values: Tensor) -> None:
        """Add the features of one micro-batch."""
        values_ND = values.flatten(0, -2).double() - self.shift_D
        self.count += len(values_ND)
        self.sum_D += values_ND.sum(0)
        self.products_DD += values_ND.T @ values_ND

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        """Return the mean [D] and covariance [D, D] of the features of all ranks. Collective.

        Call this only once per instance, because it replaces this rank's sums with the sums over all ranks.
        """
        count, sum_D, products_DD = map(ranks.sum_over_ranks, (self.count, self.sum_D, self.products_DD))
        mean_D = sum_D / count
        return mean_D + self.shift_D, products_DD / count - torch.outer(mean_D, mean_D)
