"""What frozen features are worth where there are labels to ask: k nearest neighbours, and a linear probe.

Plain functions of features and labels; the same features, labels and seed give the same result.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEIGHBOURS = 20
TEMPERATURE = 0.07
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Learning rates of which the held-out images choose."""
HELD_OUT = 10
"""One in so many training images is held out to choose the learning rate."""
EPOCHS = 20
BATCH = 256
MOMENTUM = 0.9
FLOOR = 1e-4
"""Least standard deviation of a channel, relative to the mean of all: one that hardly varies would become noise."""
ROWS = 256
"""Validation images whose similarities to all training images are held at a time."""


class Probe(NamedTuple):
    """The answers of a linear probe."""

    logits_MK: Tensor
    """Of the validation images, fp32."""
    lr: float
    """The learning rate that was chosen."""


def top1(scores_MK: Tensor, labels_M: Tensor) -> float:
    """Percent of the images whose largest score is that of their label."""
    return 100 * (scores_MK.argmax(1) == labels_M).double().mean().item()


def knn_votes(
    train_ND: Tensor,
    labels_N: Tensor,
    val_MD: Tensor,
    *,
    num_classes: int,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Let the k training images of the largest cosine vote for their class, each with exp(cosine / temperature).

    Args:
        train_ND, val_MD: features, any float dtype, on one device.
        labels_N: int64 in [0, num_classes).

    Returns:
        Sums of votes, fp32 [M, num_classes].

    Raises:
        ValueError: there are fewer than k training images.

    **Source**: DINO, facebookresearch/dino `eval_knn.py`.
    """
    if len(train_ND) < k:
        raise ValueError(
            f"k-NN needs at least {k} training images that can be decoded, found {len(train_ND)}: give more with "
            "--train, or in a run with --data.knn_train"
        )
    train_ND = F.normalize(train_ND.float(), dim=1)
    votes = []
    for rows_MD in F.normalize(val_MD.float(), dim=1).split(ROWS):
        cosines, nearest = (rows_MD @ train_ND.T).topk(k, dim=1)
        empty = torch.zeros(len(rows_MD), num_classes, device=train_ND.device)
        votes.append(empty.scatter_add_(1, labels_N[nearest], (cosines / temperature).exp()))
    return torch.cat(votes)


def linear_probe(train_ND: Tensor, labels_N: Tensor, val_MD: Tensor, *, num_classes: int, seed: int = 0) -> Probe:
    """Train a linear classifier on frozen features, and apply it to others.

    A tenth of the training images, drawn by the seed, is held out to choose the learning rate (the lowest of the best);
    then the classifier is trained on all of them.

    Args:
        train_ND, val_MD: features, any float dtype, on one device.
        labels_N: int64 in [0, num_classes).

    Raises:
        ValueError: there are fewer training images than one to hold out and as many to keep as it takes.
    """
    if len(train_ND) < HELD_OUT:
        raise ValueError(f"a probe needs at least {HELD_OUT} training images, found {len(train_ND)}: give more")
    order_N = torch.randperm(len(train_ND), generator=torch.Generator().manual_seed(seed)).to(train_ND.device)
    held, kept = order_N.tensor_split([len(train_ND) // HELD_OUT])
    parts = {"num_classes": num_classes, "seed": seed}
    found = {
        lr: top1(_fit_and_apply(train_ND[kept], labels_N[kept], train_ND[held], lr=lr, **parts), labels_N[held])
        for lr in RATES
    }
    lr = max(RATES, key=found.__getitem__)  # the first of the best
    return Probe(_fit_and_apply(train_ND, labels_N, val_MD, lr=lr, **parts), lr)


def _fit_and_apply(train_ND: Tensor, labels_N: Tensor, val_MD: Tensor, *, lr: float, **parts: int) -> Tensor:
    """Logits of `val_MD`, both standardised by the mean and deviation of `train_ND`."""
    deviation_D, mean_D = torch.std_mean(train_ND.double(), dim=0, correction=0)
    if not deviation_D.any():
        raise ValueError(
            "a probe needs features that differ, found the same for all training images: train the student"
        )
    deviation_D = deviation_D.clamp_min(FLOOR * deviation_D.mean())
    train_ND, val_MD = (((features - mean_D) / deviation_D).float() for features in (train_ND, val_MD))
    with torch.no_grad():
        return fit_linear(train_ND, labels_N, lr=lr, **parts)(val_MD)


@torch.enable_grad()
def fit_linear(
    features_ND: Tensor, labels_N: Tensor, *, num_classes: int, lr: float, seed: int = 0, epochs: int = EPOCHS
) -> nn.Linear:
    """Minimise the cross-entropy of a linear classifier by SGD from zero: batches of 256 in an order drawn by the seed,
    momentum 0.9, a learning rate that falls as a cosine from `lr` to 0, no weight decay."""
    num_images, dim = features_ND.shape
    layer = nn.Linear(dim, num_classes).to(features_ND)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-num_images // BATCH))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(num_images, generator=generator).to(features_ND.device).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(layer(features_ND[rows]), labels_N[rows]).backward()
            optimizer.step()
            schedule.step()
    return layer
