"""Evaluate frozen features with labels: k-nearest neighbours and a linear probe.

All functions depend only on their arguments: equal features, labels and seed give equal results.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEIGHBOURS = 20
TEMPERATURE = 0.07
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Candidate learning rates; held-out images select the best."""
HELD_OUT = 10
"""One in HELD_OUT training images is held out to select the learning rate."""
EPOCHS = 20
BATCH = 256
MOMENTUM = 0.9
FLOOR = 1e-4
"""Lower bound of a channel's standard deviation, as a fraction of the mean standard deviation over channels.

Without this bound, standardising would amplify the noise of a nearly constant channel.
"""
ROWS = 256
"""Number of validation images whose similarities are computed at once, to limit memory use."""


class Probe(NamedTuple):
    """Result of a linear probe."""

    logits_MK: Tensor
    """Logits of the validation images, fp32."""
    lr: float
    """Selected learning rate."""


def top1(scores_MK: Tensor, labels_M: Tensor) -> float:
    """Return the percentage of images whose label has the largest score."""
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
    """Compute each validation image's k-NN votes for the classes.

    The k training images with the largest cosine similarity vote for their own classes. The weight of a vote is
    exp(cosine / temperature).

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
            f"k-NN needs at least {k} training images that can be decoded, got {len(train_ND)}. Pass more with "
            "--train, or in a training run with --data.knn_train."
        )
    train_ND = F.normalize(train_ND.float(), dim=1)
    votes = []
    for rows_MD in F.normalize(val_MD.float(), dim=1).split(ROWS):
        cosines, nearest = (rows_MD @ train_ND.T).topk(k, dim=1)
        empty = torch.zeros(len(rows_MD), num_classes, device=train_ND.device)
        votes.append(empty.scatter_add_(1, labels_N[nearest], (cosines / temperature).exp()))
    return torch.cat(votes)


def linear_probe(train_ND: Tensor, labels_N: Tensor, val_MD: Tensor, *, num_classes: int, seed: int = 0) -> Probe:
    """Train a linear classifier on frozen features, and apply it to the validation features.

    A random tenth of the training images is held out to select the learning rate. If several learning
    rates are equally good, the lowest one is selected. Then the classifier is trained on all training images.

    Args:
        train_ND, val_MD: features, any float dtype, on one device.
        labels_N: int64 in [0, num_classes).

    Raises:
        ValueError: there are fewer than HELD_OUT training images, or their features are all equal.
    """
    if len(train_ND) < HELD_OUT:
        raise ValueError(f"a probe needs at least {HELD_OUT} training images, got {len(train_ND)}. Pass more images.")
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
    """Fit a classifier on `train_ND` and return the logits of `val_MD`.

    Both are first standardised with the mean and standard deviation of `train_ND`.
    """
    deviation_D, mean_D = torch.std_mean(train_ND.double(), dim=0, correction=0)
    if not deviation_D.any():
        raise ValueError(
            "the student's features are equal for all training images, so a probe cannot learn. Train the student."
        )
    deviation_D = deviation_D.clamp_min(FLOOR * deviation_D.mean())
    train_ND, val_MD = (((features - mean_D) / deviation_D).float() for features in (train_ND, val_MD))
    with torch.no_grad():
        return fit_linear(train_ND, labels_N, lr=lr, **parts)(val_MD)


@torch.enable_grad()
def fit_linear(
    features_ND: Tensor, labels_N: Tensor, *, num_classes: int, lr: float, seed: int = 0, epochs: int = EPOCHS
) -> nn.Linear:
    """Fit a zero-initialised linear classifier by minimising the cross-entropy with SGD.

    SGD uses batches of 256 images, shuffled with `seed`, and a momentum of 0.9. The learning rate decays from `lr` to 0
    along a cosine, and there is no weight decay.
    """
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
