"""Mixup, CutMix and label smoothing on a micro-batch: integer labels in, soft targets out.

timm's implementations are not used, because timm mixes image i of a micro-batch of B with image B - 1 - i. The code of
the distillation method (mmcls, used by cls_KD) draws random partners, and so does this module. Pixel values stay 0 to
255; `vitkd_ds.train.inputs` normalises them later.
"""

from collections.abc import Iterable
from typing import Any, Callable, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vitkd_ds.config.run import Run
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.transfer import send

T = TypeVar("T")

MIX_STREAM = 3
"""Last element of the generator key in `mix_step`. It separates these random draws from others of the same step."""


def smooth_targets(labels_B: Tensor, *, num_classes: int, label_smoothing: float) -> Tensor:
    """Return one-hot targets after label smoothing: float32 [B, K], with rows that sum to 1.

    The fraction ``label_smoothing`` of the probability is spread evenly over all classes, including the labelled class,
    as in mmcls's mode "original". Without classes, the result has the shape [B, 0].
    """
    if not num_classes:
        return torch.zeros(len(labels_B), 0, device=labels_B.device)
    floor = label_smoothing / num_classes
    targets_BK = torch.full((len(labels_B), num_classes), floor, dtype=torch.float32, device=labels_B.device)
    return targets_BK.scatter_(1, labels_B[:, None], 1 - label_smoothing + floor)


def cutmix_box(height: int, width: int, lam: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a box with a random centre and the fraction ``1 - lam`` of the image's area.

    Each side is rounded down to an even number of pixels, as in mmcls. The box is then clipped at the image's edges.

    Returns:
        Top, bottom, left and right in pixels; bottom and right are exclusive.
    """
    side = np.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    y, x = int(rng.integers(height)), int(rng.integers(width))
    return max(y - half_height, 0), min(y + half_height, height), max(x - half_width, 0), min(x + half_width, width)


def mix(
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    num_classes: int,
    mixup_alpha: float,
    cutmix_alpha: float,
    label_smoothing: float,
    rng: np.random.Generator,
    mix_mode: str = "batch",
    render: Callable[..., T] | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | T, Tensor]:
    """Mix each image of a micro-batch with a partner image by Mixup or CutMix.

    If both are enabled, each is chosen with probability 1/2. Mixup computes ``lam * image + (1 - lam) * partner``.
    CutMix pastes a box of the partner, and lam becomes the fraction of the image that stays visible. lam is drawn from
    Beta(alpha, alpha), the partners are a random permutation, and the targets are mixed with lam.

    Args:
        images_BCHW: uint8 or float, values 0 to 255; not modified.
        labels_B: int64 class indices in [0, num_classes); ignored if num_classes is 0.
        mixup_alpha, cutmix_alpha: alpha for Mixup and for CutMix; 0 disables Mixup or CutMix.
        label_smoothing: see `smooth_targets`.
        rng: the only source of randomness.
        mix_mode: "batch" draws the kind of mixing, lam and the box once per micro-batch, "element" once per image.
        render: see `mix_step`.
        out: float32 output buffer in the images' shape, used only if mix_mode is "batch" and `render` is None. If `out`
            is None, a buffer is allocated; on a CPU, this takes longer than the mixing.

    Returns:
        The mixed images (float32 in the memory format of the input) or the result of `render`, and the mixed targets
        (float32 [B, K], or [B, 0] without classes).
    """
    targets_BK = smooth_targets(labels_B, num_classes=num_classes, label_smoothing=label_smoothing)
    drawn = _draw(images_BCHW, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, mix_mode=mix_mode, rng=rng)
    if drawn is None:
        return render(images_BCHW, None) if render else images_BCHW.to(torch.float32), targets_BK
    if render or mix_mode == "element":
        mixing = _send(drawn, images_BCHW.device)
        return (render or blend)(images_BCHW, mixing), _blend_targets(targets_BK, mixing)
    # All images share one lam and box, so no per-pixel weights are needed. On a CPU, those take longer than the mixing.
    partner_B, lam = send(drawn.partner_B, images_BCHW.device), float(drawn.lam_B[0])
    images = torch.empty_like(images_BCHW, dtype=torch.float32) if out is None else out
    if drawn.is_cutmix_B[0]:
        top, bottom, left, right = map(int, drawn.box_B4[0])
        images.copy_(images_BCHW)
        own_BCHW, pasted_BCHW = (whole[:, :, top:bottom, left:right] for whole in (images, images_BCHW))
        for place, partner in _pairs(partner_B):
            own_BCHW[place] = pasted_BCHW[partner]
    else:
        _mixup(images_BCHW, partner_B, lam, images)
    return images, lam * targets_BK + (1 - lam) * targets_BK[partner_B]


def _pairs(partner_B: Tensor) -> Iterable[tuple[Any, Any]]:
    """Return pairs of an image index and a partner index.

    On a GPU, a single pair covers the whole micro-batch: a slice of all images, and the tensor of all partners.

    On a CPU, there is one pair of integers per image. Temporaries for one image then stay in the cache, and an integer
    index gives a view, while indexing with a tensor would copy byte by byte.
    """
    return [(slice(None), partner_B)] if partner_B.is_cuda else enumerate(partner_B.tolist())


def _mixup(images_BCHW: Tensor, partner_B: Tensor, lam: float, out_BCHW: Tensor) -> None:
    """Blend each image with its partner, and write the result to `out_BCHW`."""
    for place, partner in _pairs(partner_B):
        partners = images_BCHW[partner].to(torch.float32, copy=True)  # without a copy, mul_ would modify fp32 inputs
        out_BCHW[place].copy_(images_BCHW[place]).mul_(lam).add_(partners.mul_(1 - lam))


class Mixing(NamedTuple):
    """Mixing parameters per image: NumPy arrays after the random draws, or tensors on the images' device."""

    partner_B: Any
    """Index of the partner image, int64."""
    lam_B: Any
    """Weight of the image itself; float64 in a NumPy array, fp32 in a tensor."""
    box_B4: Any
    """Box that CutMix pastes, int64: top, bottom, left and right as in `cutmix_box`."""
    is_cutmix_B: Any
    """bool: True for CutMix, False for Mixup."""


def blend(images_BCHW: Tensor, mixing: Mixing) -> Tensor:
    """Return the mixed images in fp32. The input is not modified, and a compiler can fuse all operations."""
    height, width = images_BCHW.shape[2:]
    top, bottom, left, right = mixing.box_B4[:, :, None].unbind(1)
    y, x = (torch.arange(size, device=images_BCHW.device) for size in (height, width))
    inside_BHW = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
    # Per-pixel weight of the image: exactly 0 or 1 for CutMix, so that pixel values stay unchanged.
    weight_BHW = torch.where(mixing.is_cutmix_B[:, None, None], (~inside_BHW).float(), mixing.lam_B[:, None, None])
    weight_B1HW, images = weight_BHW[:, None], images_BCHW.to(torch.float32)
    return weight_B1HW * images + (1 - weight_B1HW) * images[mixing.partner_B]


def _blend_targets(targets_BK: Tensor, mixing: Mixing) -> Tensor:
    lam_B1 = mixing.lam_B[:, None]
    return lam_B1 * targets_BK + (1 - lam_B1) * targets_BK[mixing.partner_B]


def _draw(
    images_BCHW: Tensor, *, mixup_alpha: float, cutmix_alpha: float, mix_mode: str, rng: np.random.Generator
) -> Mixing | None:
    """Draw mixing parameters on the CPU without waiting for the device. Return None if Mixup and CutMix are off."""
    num_images, _, height, width = images_BCHW.shape
    alphas = [(kind, alpha) for kind, alpha in (("mixup", mixup_alpha), ("cutmix", cutmix_alpha)) if alpha > 0]
    if not alphas:
        return None
    assert mix_mode in ("batch", "element"), f"mix_mode must be batch or element, got {mix_mode!r}"
    num_draws = num_images if mix_mode == "element" else 1
    chosen = rng.integers(len(alphas), size=num_draws)
    is_cutmix = np.array([kind == "cutmix" for kind, _ in alphas])[chosen]
    lam = rng.beta(*2 * [np.array([alpha for _, alpha in alphas])[chosen]])
    partner_B, box = rng.permutation(num_images), np.zeros((num_draws, 4), np.int64)
    for i in np.flatnonzero(is_cutmix):
        box[i] = top, bottom, left, right = cutmix_box(height, width, float(lam[i]), rng)
        # Clipping at the image's edges may have shrunk the box.
        lam[i] = 1 - (bottom - top) * (right - left) / (height * width)
    times = num_images // num_draws
    return Mixing(partner_B, lam.repeat(times), box.repeat(times, axis=0), is_cutmix.repeat(times))


def _send(drawn: Mixing, device: torch.device) -> Mixing:
    mixing = Mixing(*(send(array, device) for array in drawn))
    return mixing._replace(lam_B=mixing.lam_B.float())


def mix_step(
    run: Run,
    images_BCHW: Tensor,
    labels_B: Tensor,
    *,
    step: int,
    place: int,
    render: Callable[..., T] | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | T, Tensor]:
    """Apply a run's Mixup and CutMix settings to a micro-batch (see `mix`), and seed torch for masks and drop path.

    All random draws depend only on the run's seed, `step` and `place`. Therefore they are the same for any number of
    ranks, and checkpoints need no generator state.

    Args:
        step: number of completed updates.
        place: index of the micro-batch in the step, counted over all ranks.
        render: function that gets the images and their `Mixing` (None if mixing is off). If given, it does the mixing,
            and its result is returned instead of the mixed images.
        out: see `mix`.
    """
    rng = keyed_rng(run.seed, step, place, MIX_STREAM)
    torch.manual_seed(int(rng.integers(2**63)))
    return mix(
        images_BCHW,
        labels_B,
        num_classes=run.data.num_classes,
        mixup_alpha=run.augment.mixup_alpha,
        cutmix_alpha=run.augment.cutmix_alpha,
        mix_mode=run.augment.mix_mode,
        label_smoothing=run.losses.label_smoothing,
        rng=rng,
        render=render,
        out=out,
    )
