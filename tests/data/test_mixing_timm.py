"""Mixup, CutMix and smoothing against timm's own code, given the same draws and timm's partner: the mirrored one."""

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup

from tests.data.test_mixing import B, K, micro_batch, run
from vitkd_ds.data.mixing import cutmix_box, smooth_targets

SIZE = 8, 12


class Mirrored(np.random.Generator):
    """A generator whose permutation is the one that timm mixes with."""

    def permutation(self, count):
        return np.arange(count)[::-1].copy()


def draws(seed):
    return Mirrored(np.random.PCG64(seed))


def by_timm(monkeypatch, images, labels, *, mode, lam, is_cutmix, boxes, smoothing):
    """timm's Mixup with lam, kind and boxes given; it draws boxes of an odd side one pixel wider."""
    theirs = timm_mixup.Mixup(mode=mode, label_smoothing=smoothing, num_classes=K)
    monkeypatch.setattr(theirs, f"_params_per_{mode}", lambda *_: (lam, is_cutmix))
    boxes = iter(boxes)
    monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, **__: next(boxes))
    return theirs(images.float().contiguous(), labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_micro_batch_is_mixed_as_by_timm(kind, seed, monkeypatch):
    images, labels = micro_batch(seed)
    ours = run(images, labels, draws(seed), smoothing=0.1, **{kind: 0.8})
    rng = draws(seed)
    rng.integers(1)
    lam = float(rng.beta(0.8, 0.8))
    boxes = [cutmix_box(*SIZE, lam, rng)] if kind == "cutmix" else []
    theirs = by_timm(
        monkeypatch, images, labels, mode="batch", lam=lam, is_cutmix=kind == "cutmix", boxes=boxes, smoothing=0.1
    )
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_elements_are_mixed_as_by_timm(seed, monkeypatch):
    images, labels = micro_batch(seed)
    ours = run(images, labels, draws(seed), mixup=0.8, cutmix=1.0, smoothing=0.1, mode="element")
    rng = draws(seed)
    is_cutmix = rng.integers(2, size=B) == 1
    lam = rng.beta(*[np.where(is_cutmix, 1.0, 0.8)] * 2)
    boxes = [cutmix_box(*SIZE, float(value), rng) for value in lam[is_cutmix]]
    theirs = by_timm(
        monkeypatch, images, labels, mode="elem", lam=lam.copy(), is_cutmix=is_cutmix, boxes=boxes, smoothing=0.1
    )
    assert 0 < is_cutmix.sum() < B
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothing_is_timms(smoothing):
    labels = torch.arange(K)
    theirs = timm_mixup.mixup_target(labels, K, smoothing=smoothing)
    torch.testing.assert_close(smooth_targets(labels, num_classes=K, label_smoothing=smoothing), theirs)
