"""Mixup, CutMix and label smoothing on a micro-batch: integer labels in, soft targets out.

Written here although timm has both, because timm mixes each image with its mirror in the micro-batch, and the method's
code (mmcls, as used by cls_KD) with a random partner. Normalisation happens elsewhere: values stay 0 to 255.
"""

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.transfer import send

MIX_STREAM = 3
"""Last part of the key of `mix_step`, so that no other use of (seed, step) draws the same numbers."""


def smooth_targets(labels_B: Tensor, *, num_classes: int, label_smoothing: float) -> Tensor:
    """Make one-hot targets with ``label_smoothing`` of the mass spread over all classes, the labelled one included, as
    mmcls does in its mode "original": float32 [B, K], each row summing to 1."""
    floor = label_smoothing / num_classes
    targets_BK = torch.full((len(labels_B), num_classes), floor, dtype=torch.float32, device=labels_B.device)
    return targets_BK.scatter_(1, labels_B[:, None], 1 - label_smoothing + floor)


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box of area ``1 - lam`` of the image around a random centre, cut off at the image's edges: top, bottom,
    left and right in pixels; bottom and right are the first row and column outside."""
    side = np.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)


def mix(
    images_BCHW: Tensor, labels_B: Tensor, *, num_classes: int, mixup_alpha: float, cutmix_alpha: float,
    label_smoothing: float, rng: np.random.Generator, mix_mode: str = "batch",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mix each image of a micro-batch with a partner, by one of Mixup and CutMix, at even odds if both are on.

    Mixup blends, ``lam * image + (1 - lam) * partner``; CutMix pastes a box of the partner, and lam becomes the part of
    the image that is left. lam is drawn from Beta(alpha, alpha), partners are a random permutation, and targets mix
    with lam.

    Args:
        images_BCHW: uint8 or float, 0 to 255; not altered.
        labels_B: int64 class indices in [0, num_classes).
        mixup_alpha: 0 is off, as for `cutmix_alpha`.
        label_smoothing: see `smooth_targets`.
        rng: the only source of randomness.
        mix_mode: batch (one choice, lam and box for the micro-batch) or element (one for each image).

    Returns:
        images_BCHW float32 in the memory format of the input, and targets_BK float32, each row summing to 1.
    """
    images = images_BCHW.to(torch.float32)
    targets_BK = smooth_targets(labels_B, num_classes=num_classes, label_smoothing=label_smoothing)
    alphas = [(kind, alpha) for kind, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not alphas:
        return images, targets_BK
    if mix_mode == "element":
        return _mix_elements(images, targets_BK, alphas, rng)
    assert mix_mode == "batch", f"mix_mode must be batch or element, found {mix_mode!r}"
    kind, alpha = alphas[int(rng.integers(len(alphas)))]
    lam = float(rng.beta(alpha, alpha))
    partner_B = send(rng.permutation(len(images)), images.device)
    if kind == "mixup":
        images = lam * images + (1 - lam) * images[partner_B]
    else:
        top, bottom, left, right = cutmix_box(*images.shape[2:], lam, rng)
        images = images.clone() if images is images_BCHW else images
        images[:, :, top:bottom, left:right] = images_BCHW[partner_B, :, top:bottom, left:right].to(torch.float32)
        # The edges of the image may have cut the box off, so its area is no longer the one that was drawn.
        lam = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    return images, lam * targets_BK + (1 - lam) * targets_BK[partner_B]


def _mix_elements(
    images_BCHW: Tensor, targets_BK: Tensor, alphas: list[tuple[str, float]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Mix float32 images, which are not altered, as `mix` does, but each by its own draw."""
    num_images, _, height, width = images_BCHW.shape
    # All draws are made on the CPU, so that nothing waits for the device.
    chosen_B = rng.integers(len(alphas), size=num_images)
    alpha_B = np.array([alpha for _, alpha in alphas])[chosen_B]
    is_cutmix_B = np.array([kind == "cutmix" for kind, _ in alphas])[chosen_B]
    lam_B = rng.beta(alpha_B, alpha_B)
    partner_B = send(rng.permutation(num_images), images_BCHW.device)
    box_B4 = np.zeros((num_images, 4), np.int64)
    for i in np.flatnonzero(is_cutmix_B):
        box_B4[i] = top, bottom, left, right = cutmix_box(height, width, float(lam_B[i]), rng)
        lam_B[i] = 1 - (bottom - top) * (right - left) / (height * width)
    lam_B, box_B4, is_cutmix_B = (send(x, images_BCHW.device) for x in (lam_B, box_B4, is_cutmix_B))
    lam_B, (top, bottom, left, right) = lam_B.float(), box_B4[:, :, None].unbind(1)
    y, x = torch.arange(height, device=images_BCHW.device), torch.arange(width, device=images_BCHW.device)
    inside_BHW = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    # Weight of the image at each pixel: 0 or 1 under CutMix, so that its pixels stay exactly what they were.
    weight_BHW = torch.where(is_cutmix_B[:, None, None], (~inside_BHW).float(), lam_B[:, None, None])
    weight_B1HW = weight_BHW[:, None]
    mixed_BCHW = weight_B1HW * images_BCHW + (1 - weight_B1HW) * images_BCHW[partner_B]
    return mixed_BCHW, lam_B[:, None] * targets_BK + (1 - lam_B[:, None]) * targets_BK[partner_B]


def mix_step(run: Run, images_BCHW: Tensor, labels_B: Tensor, *, step: int, place: int) -> tuple[Tensor, Tensor]:
    """Mix a micro-batch with the settings of a run (see `mix`), and seed torch's generator for masks and drop path.
    Both are keyed by seed, step and the micro-batch's place in the step, over all ranks: there is no generator to save,
    and the number of ranks does not matter."""
    rng = keyed_rng(run.seed, step, place, MIX_STREAM)
    torch.manual_seed(int(rng.integers(2**63)))
    return mix(
        images_BCHW, labels_B, num_classes=run.data.num_classes, mixup_alpha=run.augment.mixup_alpha,
        cutmix_alpha=run.augment.cutmix_alpha, mix_mode=run.augment.mix_mode,
        label_smoothing=run.losses.ce.label_smoothing, rng=rng,
    )  # fmt: skip
