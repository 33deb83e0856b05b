"""Mixup, CutMix and smoothing: their invariants, and timm's values from the same random draws."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup

from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.recipes import build_run
from vitkd_ds.train.mixing import MIX_STREAM, cutmix_box, mix, mix_step, smooth_targets

B, K, SIZE = 6, 5, (8, 12)


def micro_batch(seed=0):
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (B, *SIZE, 3), dtype=np.uint8)).permute(0, 3, 1, 2)
    return images, torch.from_numpy(rng.integers(0, K, B))


def run(images, labels, rng, *, mixup=0.0, cutmix=0.0, smoothing=0.0, mode="batch", num_classes=K):
    alphas = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "mix_mode": mode}
    return mix(images, labels, num_classes=num_classes, label_smoothing=smoothing, rng=rng, **alphas)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_without_mixing_images_keep_their_values_and_targets_are_smoothed_like_timms(smoothing):
    images, labels = micro_batch()
    mixed, targets = run(images, labels, keyed_rng(0), smoothing=smoothing)
    assert mixed.dtype == torch.float32 and torch.equal(mixed, images.float())
    assert torch.equal(targets, smooth_targets(labels, num_classes=K, label_smoothing=smoothing))
    torch.testing.assert_close(targets, timm_mixup.mixup_target(labels, K, smoothing=smoothing))


def test_mixing_depends_only_on_the_generator_and_gives_the_recorded_numbers():
    images, labels = micro_batch()
    first, again, other = (run(images, labels, keyed_rng(s), mixup=0.8, cutmix=1.0, smoothing=0.1) for s in (7, 7, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert float(first[0].double().sum()) == pytest.approx(216275.998, abs=0.1)
    np.testing.assert_allclose(first[1][0], [0.02, 0.02, 0.1229, 0.02, 0.8171], atol=1e-4)
    mixed = [run(images, labels, keyed_rng(seed), mixup=0.8, cutmix=1.0)[0] for seed in range(300)]
    assert 110 < sum(torch.equal(values, values.round()) for values in mixed) < 190  # CutMix keeps levels unchanged


@pytest.mark.parametrize("mode", ["batch", "element"])
@pytest.mark.parametrize("mixup, cutmix", [(0, 0), (0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_targets_sum_to_one_and_the_input_and_its_memory_format_are_kept(mixup, cutmix, mode):
    before, labels = micro_batch()
    for seed, dtype in product(range(20), (torch.uint8, torch.float32)):
        images = before.to(dtype, copy=True)
        mixed, targets = run(images, labels, keyed_rng(seed), mixup=mixup, cutmix=cutmix, smoothing=0.1, mode=mode)
        torch.testing.assert_close(targets.sum(1), torch.ones(B))
        assert (targets >= 0).all() and torch.equal(images, before.to(dtype))
        assert mixed.is_contiguous(memory_format=torch.channels_last)
    # A micro-batch of one is mixed with itself.
    mixed, targets = run(before[:1], labels[:1], keyed_rng(0), mixup=mixup, cutmix=cutmix, mode=mode)
    torch.testing.assert_close(mixed, before[:1].float())
    torch.testing.assert_close(targets, smooth_targets(labels[:1], num_classes=K, label_smoothing=0))


def test_the_cutmix_box_stays_in_the_image_down_to_one_pixel():
    for seed, (height, width) in product(range(200), [(1, 1), (1, 9), (7, 5)]):
        rng = keyed_rng(seed, height, width)
        top, bottom, left, right = cutmix_box(height, width, rng.random(), rng)
        assert 0 <= top <= bottom <= height and 0 <= left <= right <= width


def black_and_white(num_images):
    """Image i has level i everywhere and label i, so every pixel reveals its image."""
    levels = torch.arange(num_images, dtype=torch.uint8)
    return levels[:, None, None, None].repeat(1, 3, 8, 12), levels.long()


@pytest.mark.parametrize("seed, mixup, cutmix", [*product(range(5), [0.8], [0]), *product(range(5), [0], [1.0])])
def test_images_and_targets_are_mixed_with_the_same_partners(seed, mixup, cutmix):
    mixed, targets = run(*black_and_white(60), keyed_rng(seed), mixup=mixup, cutmix=cutmix, num_classes=60)
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(60.0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_element_mode_mixes_each_target_like_its_pixels(mixup, cutmix):
    n, partners, lams, cut = 60, [], [], 0
    images, labels = black_and_white(n)
    alphas = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "mix_mode": "element"}
    mixed, targets = mix(images, labels, num_classes=n, label_smoothing=0, rng=keyed_rng(0), **alphas)
    for i in range(n):
        others = [k for k in range(n) if k != i and targets[i, k] > 0]
        partner = others[0] if others else i
        lam = 1.0 if partner == i else float(targets[i, i])
        assert len(others) <= 1 and abs(float(mixed[i].mean()) - (lam * i + (1 - lam) * partner)) < 1e-3
        seen = set(mixed[i].unique().tolist())
        cut += len(seen) == 2
        assert seen == {float(i), float(partner)} or len(seen) == 1
        assert bool(cutmix) or len(seen) == 1
        partners += [partner] if 0 < lam < 1 else []
        lams.append(lam)
    assert len(set(partners)) == len(partners) > 40 and len(set(lams)) > 15
    assert (cut > 40) if not mixup else (15 < cut < 45) if cutmix else cut == 0


def test_element_mode_draws_lam_from_beta_and_boxes_of_that_area():
    images, labels = black_and_white(250)
    _, targets = mix(images, labels, mixup_alpha=0.8, cutmix_alpha=0, rng=keyed_rng(1), mix_mode="element",
                     num_classes=250, label_smoothing=0)  # fmt: skip
    lam = targets.diagonal().numpy()
    assert abs(lam.mean() - 0.5) < 0.08 and abs(lam.var() - 0.25 / 2.6) < 0.02  # Beta's variance: 1 / (4 (2 alpha + 1))


class Mirrored(np.random.Generator):
    """A generator that yields timm's permutation: each image is mixed with its mirror in the micro-batch."""

    def permutation(self, count):
        return np.arange(count)[::-1].copy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode, mixup, cutmix", [("batch", 0.8, 0), ("batch", 0, 0.8), ("element", 0.8, 1.0)])
def test_a_micro_batch_is_mixed_like_timms(mode, mixup, cutmix, seed, monkeypatch):
    images, labels = micro_batch(seed)
    rng, again = (Mirrored(np.random.PCG64(seed)) for _ in range(2))
    ours = run(images, labels, rng, mixup=mixup, cutmix=cutmix, smoothing=0.1, mode=mode)
    if mode == "batch":
        again.integers(1)
        is_cutmix, lam = cutmix > 0, float(again.beta(0.8, 0.8))
    else:
        is_cutmix = again.integers(2, size=B) == 1
        lam = again.beta(*[np.where(is_cutmix, cutmix, mixup)] * 2)
        assert 0 < is_cutmix.sum() < B
    # timm gets our boxes, because it makes boxes of odd sides one pixel wider.
    boxes = iter([cutmix_box(*SIZE, value, again) for value in np.atleast_1d(lam)[np.atleast_1d(is_cutmix)].tolist()])
    theirs = timm_mixup.Mixup(mode={"batch": "batch", "element": "elem"}[mode], label_smoothing=0.1, num_classes=K)
    monkeypatch.setattr(theirs, f"_params_per_{theirs.mode}", lambda *_: (lam, is_cutmix))
    monkeypatch.setattr(timm_mixup, "rand_bbox", lambda *_, **__: next(boxes))
    for mine, other, atol in zip(ours, theirs(images.float().contiguous(), labels), (1e-4, 1e-6)):
        torch.testing.assert_close(mine, other, rtol=0, atol=atol)


@pytest.mark.parametrize("mode", ["batch", "element"])
@pytest.mark.parametrize("mixup, cutmix", [(0, 0), (0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_without_classes_images_are_mixed_alike_and_targets_are_empty(mixup, cutmix, mode):
    images, labels = micro_batch()
    options = {"mixup": mixup, "cutmix": cutmix, "smoothing": 0.1, "mode": mode}
    mixed, targets = run(images, torch.zeros_like(labels), keyed_rng(3), num_classes=0, **options)
    assert targets.shape == (B, 0) and targets.dtype == torch.float32
    assert torch.equal(mixed, run(images, labels, keyed_rng(3), **options)[0])


def test_the_boxes_have_the_area_that_was_drawn():
    sizes = [cutmix_box(100, 80, 0.75, keyed_rng(seed)) for seed in range(100)]
    areas = [(bottom - top) * (right - left) for top, bottom, left, right in sizes]
    assert max(areas) == 0.25 * 100 * 80, "except where the image's edge cut them"
    whole = [cutmix_box(101, 77, lam, keyed_rng(seed)) for seed, lam in enumerate(np.linspace(0.3, 0.99, 300))]
    whole = [box for box in whole if box[0] > 0 and box[1] < 101 and box[2] > 0 and box[3] < 77]
    assert len(whole) > 30 and all((box[1] - box[0]) % 2 == (box[3] - box[2]) % 2 == 0 for box in whole)


@pytest.mark.parametrize("mode", ["batch", "element"])
@pytest.mark.parametrize("step, place", [(0, 0), (7, 0), (0, 3)])
def test_a_step_is_mixed_by_its_own_key_with_the_settings_of_the_run(step, place, mode):
    run = build_run("demo")
    augment = replace(run.augment, mixup_alpha=0.8, cutmix_alpha=0.3, mix_mode=mode)
    losses = replace(run.losses, ce=replace(run.losses.ce, label_smoothing=0.2))
    run = replace(run, seed=5, data=replace(run.data, num_classes=K), augment=augment, losses=losses)
    rng = keyed_rng(5, step, place, MIX_STREAM)
    seed = int(rng.integers(2**63))
    numbers = {"mixup_alpha": 0.8, "cutmix_alpha": 0.3, "label_smoothing": 0.2, "mix_mode": mode, "num_classes": K}
    expected = mix(*micro_batch(), rng=rng, **numbers)
    found = mix_step(run, *micro_batch(), step=step, place=place)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.initial_seed() == seed, "for masks and drop path"
