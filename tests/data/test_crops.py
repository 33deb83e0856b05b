"""Crop boxes: inside the image, determined by seed, epoch, image and repeat, and distributed as torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from vitkd_ds.data.crops import BICUBIC, BILINEAR, CentreCrops, TrainCrops
from vitkd_ds.data.order import SAMPLE_DTYPE

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def samples(indices, *, epoch=0, repeat=0):
    rows = np.zeros(len(indices), SAMPLE_DTYPE)
    rows["index"], rows["epoch"], rows["repeat"] = indices, epoch, repeat
    return rows


def crops(height, width, indices, *, seed=0, epoch=0, repeat=0, **changes):
    values = dict(size=224, scale=SCALE, ratio=RATIO, flip_probability=0.5, interpolation="bicubic")
    sizes = [np.full(len(indices), side) for side in (height, width)]
    return TrainCrops(seed=seed, **values | changes).rows(samples(indices, epoch=epoch, repeat=repeat), *sizes)


def boxes(rows):
    return np.stack([rows[name] for name in ("top", "left", "height", "width")], axis=1)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (50, 1), (2, 3), (333, 500), (65535, 1)])
def test_boxes_lie_inside_the_image_and_have_an_area(height, width):
    rows = crops(height, width, np.arange(500))
    assert min(rows["height"].min(), rows["width"].min()) >= 1 and min(rows["top"].min(), rows["left"].min()) >= 0
    assert (rows["top"] + rows["height"] <= height).all() and (rows["left"] + rows["width"] <= width).all()
    assert (rows["resized_height"] == 224).all() and (rows["window_left"] == 0).all()


def test_a_crop_depends_on_image_repeat_epoch_and_seed_but_not_on_the_order():
    base = crops(300, 400, np.arange(100), seed=7, epoch=1)
    np.testing.assert_array_equal(base, crops(300, 400, np.arange(100)[::-1], seed=7, epoch=1)[::-1])
    np.testing.assert_array_equal(crops(300, 400, [17], seed=7, epoch=1)[0], base[17])
    assert len({tuple(box) for box in boxes(base)}) > 95
    for other in (
        {"seed": 7, "epoch": 2},
        {"seed": 8, "epoch": 0},
        {"seed": 8, "epoch": 1},
        {"seed": 7, "epoch": 1, "repeat": 1},
    ):
        assert (boxes(base) == boxes(crops(300, 400, np.arange(100), **other))).all(axis=1).mean() < 0.05


@pytest.mark.parametrize("height, width", [(375, 500), (100, 700)])
def test_boxes_have_torchvisions_distribution(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = boxes(crops(height, width, np.arange(4000)))
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    for column, side in enumerate((height, width, height, width)):
        difference = np.quantile(ours[:, column], quantiles) - np.quantile(theirs[:, column], quantiles)
        assert np.abs(difference).max() < 0.05 * side
    # An image too narrow for the ratio gets the central box.
    theirs = RandomResizedCrop.get_params(torch.empty(3, 400, 40), [1.0, 1.0], list(RATIO))
    assert tuple(boxes(crops(400, 40, [5], scale=(1.0, 1.0)))[0]) == tuple(theirs)


def test_flips_and_filters_have_their_probability_and_can_be_fixed():
    rows = crops(30, 40, np.arange(4000), interpolation="random")
    assert abs(rows["flip"].mean() - 0.5) < 0.03 and abs(rows["filter"].mean() - 0.5) < 0.03
    assert abs(np.corrcoef(rows["flip"], rows["filter"])[0, 1]) < 0.05
    for probability, interpolation, number in [(0.0, "bilinear", BILINEAR), (1.0, "bicubic", BICUBIC)]:
        rows = crops(30, 40, np.arange(50), flip_probability=probability, interpolation=interpolation)
        assert (rows["flip"] == probability).all() and (rows["filter"] == number).all()


def test_flips_and_boxes_share_no_random_draw():
    rows = crops(300, 400, np.arange(4000), interpolation="random")
    for name in ("flip", "filter"):
        for values in (rows["height"] * rows["width"], rows["width"] / rows["height"], rows["top"], rows["left"]):
            assert abs(np.corrcoef(rows[name], values)[0, 1]) < 0.06


def test_ratios_are_log_uniform():
    rows = crops(1000, 1000, np.arange(4000), scale=(0.1, 0.1), ratio=(1 / 4, 4.0))
    logs = np.log(rows["width"] / rows["height"]) / np.log(4)
    assert np.quantile(logs, (0.25, 0.5, 0.75)) == pytest.approx([-0.5, 0, 0.5], abs=0.06)
    rows = crops(1000, 1000, np.arange(100), scale=(0.1, 0.1), ratio=(2.0, 3.0))
    assert (rows["width"] > 1.9 * rows["height"]).all()


def test_all_box_positions_are_equally_likely():
    rows = crops(3, 3, np.arange(4000), scale=(4 / 9, 4 / 9), ratio=(1.0, 1.0))
    for name in ("top", "left"):
        assert set(rows[name]) == {0, 1} and abs(rows[name].mean() - 0.5) < 0.04


def test_a_box_that_does_not_fit_is_redrawn_ten_times():
    torch.manual_seed(0)
    settings, image = {"scale": (0.5, 1.0), "ratio": (1 / 4, 4.0)}, torch.empty(3, 100, 400)
    theirs = np.array([RandomResizedCrop.get_params(image, *map(list, settings.values())) for _ in range(4000)])
    ours = boxes(crops(100, 400, np.arange(4000), **settings))
    whole, expected = ((found == (0, 0, 100, 400)).all(1).mean() for found in (ours, theirs))
    assert 0.1 < expected < 0.6 and abs(whole - expected) < 0.04


def test_evaluation_resizes_by_the_filter_of_the_settings():
    for interpolation, number in (("bilinear", BILINEAR), ("bicubic", BICUBIC), ("random", BICUBIC)):
        rows = CentreCrops(16, 1.0, interpolation).rows(samples([0, 1]), np.array([30, 40]), np.array([50, 20]))
        assert (rows["filter"] == number).all()


@pytest.mark.parametrize("size, fraction", [(224, 0.875), (224, 1.0), (224, 0.9), (28, 0.9), (15, 0.7)])
def test_the_centre_crop_equals_torchvisions_resize_and_centre_crop(size, fraction):
    heights, widths = np.array([256, 300, 1, 375, 500, 333]), np.array([256, 500, 9, 500, 375, 87])
    rows = CentreCrops(size, fraction, "bicubic").rows(samples(np.arange(6)[::-1]), heights, widths)
    assert rows["index"].tolist() == [5, 4, 3, 2, 1, 0] and not rows["flip"].any()
    for row, height, width in zip(rows, heights, widths, strict=True):
        resized = Resize(int(np.floor(size / fraction)))(torch.zeros(1, height, width))
        assert tuple(resized.shape[1:]) == (row["resized_height"], row["resized_width"])
        marked = torch.arange(resized[0].numel()).reshape(resized.shape)
        corner = CenterCrop(size)(marked)[0, 0, 0].item()
        assert divmod(corner, int(row["resized_width"])) == (row["window_top"], row["window_left"])
        assert (row["top"], row["left"], row["height"], row["width"]) == (0, 0, height, width)
