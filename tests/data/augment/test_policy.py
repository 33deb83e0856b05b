"""Random augmentation choices: notation, levels and distributions against timm; purposes never share a draw."""

import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing

from vitkd_ds.data.augment import policy as drawn
from vitkd_ds.data.augment.policy import OPS, RAND_AUGMENT_OPS, RandAugment, parse_rand_augment
from vitkd_ds.data.draws import CROP_DRAWS, image_keys

N = 20_000
KEYS = image_keys(np.arange(N), np.zeros(N, np.int64), seed=1, epoch=2)
WITH_INCREASING = {"Posterize", "Solarize", *drawn.ENHANCEMENTS}


def test_the_recipes_notation_is_read_as_timm_reads_it_without_torch():
    for text, expected in [
        ("rand-m9-mstd0.5-inc1", RandAugment(9, 2, 0.5, 0.5, 10, True)),
        ("rand-m9", RandAugment(magnitude=9)),
        ("rand-m7-n3-p0.8-mmax20-inc0", RandAugment(7, 3, 0.8, 0.0, 20, False)),
    ]:
        ours, theirs = parse_rand_augment(text), auto_augment.rand_augment_transform(text, {})
        op = theirs.ops[0]
        assert ours == expected and (ours.magnitude, ours.num_layers) == (op.magnitude, theirs.num_layers)
        found = (ours.probability, ours.magnitude_std, ours.magnitude_max)
        assert found == (op.prob, op.magnitude_std, op.magnitude_max or 10)
        assert [op.name.removesuffix("Increasing") for op in theirs.ops] == list(RAND_AUGMENT_OPS)
    source = Path(drawn.__file__).read_text()  # `plan` parses the notation without torch
    assert "torch" not in source.partition('"""\n\n')[2].partition("MAX_LAYERS")[0]


@pytest.mark.parametrize(
    "text",
    [
        "rand-",
        "aug-m9",
        "rand-w0",
        "rand-tweights",
        "rand-m9-x1",
        "rand-m9.5",
        "rand-m",
        "rand-m-9",
        "rand-m9-m8",
        "",
        "rand-n0",
        "rand-n99",
        "rand-p1.5",
        "rand-mstd101",
        "rand-inc2",
        "rand-mmax0",
        "rand-mstdinf",
        "rand-m9-",
        "RAND",
    ],
)
def test_unknown_notation_is_rejected_by_name(text):
    with pytest.raises(ValueError, match=f"augment.rand_augment.*{re.escape(repr(text))}"):
        parse_rand_augment(text)


@pytest.mark.parametrize("is_negative", [False, True])
@pytest.mark.parametrize("is_increasing", [False, True])
@pytest.mark.parametrize("op", RAND_AUGMENT_OPS)
def test_level_functions_equal_timms_at_every_magnitude_and_sign(op, is_increasing, is_negative, monkeypatch):
    magnitudes = np.concatenate([np.linspace(0, 10, 201), [12.3, 15, 20]])
    theirs = auto_augment.LEVEL_TO_ARG[op + "Increasing" * (is_increasing and op in WITH_INCREASING)]
    monkeypatch.setattr(random, "random", lambda: float(is_negative))
    signs = np.full(len(magnitudes), is_negative)
    ours = drawn.level_arguments(op, magnitudes, signs, is_increasing=is_increasing)
    expected = [theirs(magnitude, {})[0] if theirs else 0 for magnitude in magnitudes.tolist()]
    np.testing.assert_array_equal(ours, expected)


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def test_operations_are_drawn_uniformly_with_replacement_and_applied_with_probability_p():
    first, second = drawn.draw_rand_augment(KEYS, RandAugment(probability=0.7), interpolation="random")
    for layer in (first, second):
        applied = layer.op_B != drawn.NO_OP
        assert abs(applied.mean() - 0.7) < 0.015
        counts = np.bincount(layer.op_B[applied], minlength=15)
        assert len(counts) == 15 and chi_square(counts, applied.sum() / 15) < 36.1  # 99.9 % of chi-square, 14 degrees
        assert abs(layer.is_cubic_B.mean() - 0.5) < 0.015
    both = (first.op_B >= 0) & (second.op_B >= 0)
    pairs = np.bincount(first.op_B[both] * 15 + second.op_B[both], minlength=225)
    assert chi_square(pairs, both.sum() / 225) < 295  # 99.9 %, 224 degrees
    for number in (1, 3):
        assert len(drawn.draw_rand_augment(KEYS, RandAugment(num_layers=number), interpolation="random")) == number
    for name, part in (("bilinear", 0), ("bicubic", 1)):
        layers = drawn.draw_rand_augment(KEYS, RandAugment(), interpolation=name)
        assert all((layer.is_cubic_B == part).all() for layer in layers)


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m5-mstd3-p0.9"])
def test_arguments_have_timms_distribution(text):
    transform, seen = auto_augment.rand_augment_transform(text, {}), {op: [] for op in RAND_AUGMENT_OPS}
    for op in transform.ops:
        name = op.name.removesuffix("Increasing")
        op.aug_fn = lambda image, argument=0, name=name, **_: seen[name].append(argument) or image
    random.seed(0)
    np.random.seed(0)
    for _ in range(N):
        transform(None)
    theirs = {name: np.array(values) for name, values in seen.items()}
    layers = drawn.draw_rand_augment(KEYS, parse_rand_augment(text), interpolation="random")
    for number, op in enumerate(RAND_AUGMENT_OPS):
        ours = np.concatenate([layer.argument_B[layer.op_B == number] for layer in layers])
        count = min(len(ours), len(theirs[op]))
        assert abs(len(ours) / len(theirs[op]) - 1) < 0.12
        spread = theirs[op].std() + 1e-9
        assert abs(ours.mean() - theirs[op].mean()) < 4.5 * spread * (2 / count) ** 0.5
        assert abs(ours.std() / spread - 1) < 0.12 or spread < 1e-6
        # Kolmogorov-Smirnov distance between the two distributions, at the 0.1 % level
        grid = np.concatenate([ours, theirs[op]])
        below = [np.searchsorted(np.sort(values), grid, side="right") / len(values) for values in (ours, theirs[op])]
        assert np.abs(below[0] - below[1]).max() < 1.95 * (2 / count) ** 0.5, op


def test_three_augment_draws_its_three_operations_at_even_odds():
    layer = drawn.draw_three_augment(KEYS)
    names, counts = np.unique(np.array(OPS)[layer.op_B], return_counts=True)
    assert set(names) == {"Color", "Solarize", "GaussianBlur"} and chi_square(counts, N / 3) < 13.8
    radii = layer.argument_B[layer.op_B == OPS.index("GaussianBlur")]
    assert 0.1 <= radii.min() < 0.11 and 1.99 < radii.max() <= 2 and abs(radii.mean() - 1.05) < 0.03
    assert (layer.argument_B[layer.op_B == OPS.index("Solarize")] == 128).all()
    assert (layer.argument_B[layer.op_B == OPS.index("Color")] == 0).all()


def test_color_jitter_applies_all_three_operations_in_one_of_six_orders():
    layers = drawn.draw_color_jitter(KEYS, 0.3)
    orders = np.stack([layer.op_B for layer in layers], 1)
    found, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(found) == 6 and chi_square(counts, N / 6) < 20.5
    assert all(len(set(order)) == 3 for order in found.tolist())
    factors = np.stack([layer.argument_B for layer in layers], 1)
    assert 0.7 <= factors.min() < 0.701 and 1.299 < factors.max() <= 1.3 and abs(factors.mean() - 1) < 0.005
    by_op = np.take_along_axis(factors, orders.argsort(1), 1)
    assert np.abs(np.corrcoef(by_op.T) - np.eye(3)).max() < 0.03


def test_rectangles_have_timms_distribution_and_stay_in_the_image():
    height, width = 40, 64
    ours = drawn.draw_rectangles(KEYS, probability=0.25, height=height, width=width)
    assert ours.shape == (N, 4) and (ours[ours[:, 2] == 0] == 0).all()
    tops, lefts, heights, widths = ours[ours[:, 2] > 0].T
    assert abs(len(tops) / N - 0.25) < 0.012
    assert tops.min() == 0 and (tops + heights <= height).all() and (tops + heights == height).any()
    assert (lefts >= 0).all() and (lefts + widths <= width).all() and (lefts + widths == width).any()
    assert (heights < height).all() and (widths < width).all()
    erase = RandomErasing(1.0, mode="pixel", device="cpu")  # fills zeros with noise
    random.seed(0)
    are_erased = [erase(torch.zeros(1, height, width))[0] != 0 for _ in range(4000)]
    for axis, mine in ((1, heights), (0, widths)):
        other = np.array([int(is_erased.any(axis).sum()) for is_erased in are_erased])
        assert abs(mine.mean() - other.mean()) < 4 * other.std() * (1 / 4000 + 1 / len(mine)) ** 0.5
        assert abs(mine.std() / other.std() - 1) < 0.06
    assert not drawn.draw_rectangles(KEYS[:100], probability=1.0, height=1, width=1).any()
    small = drawn.draw_rectangles(KEYS[:100], probability=1.0, height=2, width=3)
    small = small[small[:, 2] > 0]
    assert len(small) > 10 and (small[:, 2] == 1).all() and (small[:, 3] <= 2).all()


def test_no_two_purposes_share_a_random_draw(monkeypatch):
    taken = []
    monkeypatch.setattr(drawn, "uniform", lambda keys, draw: taken.append(draw) or np.zeros(len(keys)))
    monkeypatch.setattr(drawn, "normal", lambda keys, draw: taken.extend([draw, draw + 1]) or np.zeros(len(keys)))
    few = KEYS[:2]
    drawn.draw_rand_augment(few, RandAugment(num_layers=drawn.MAX_LAYERS), interpolation="random")
    drawn.draw_three_augment(few)
    drawn.draw_color_jitter(few, 0.3)
    drawn.draw_rectangles(few, probability=0.5, height=32, width=32)
    assert len(taken) == len(set(taken)) == drawn.MAX_LAYERS * 6 + 2 + 4 + 41
    assert CROP_DRAWS + 1000 < min(taken) and max(taken) < drawn.NOISE_DRAWS
