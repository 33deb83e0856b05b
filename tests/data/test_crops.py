"""The boxes: inside the image, a function of seed, epoch and image alone, distributed as torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from vitkd_ds.data.crops import FLIP, HEIGHT, INDEX, LEFT, TOP, WIDTH, centre_crops, seeded_crops

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def crops(height, width, indices, *, seed=0, epoch=0):
    indices = np.asarray(indices)
    sizes = [np.full(len(indices), side) for side in (height, width)]
    return seeded_crops(*sizes, indices, seed=seed, epoch=epoch, scale=SCALE, ratio=RATIO, flip_probability=0.5)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (50, 1), (2, 3), (333, 500), (65535, 1)])
def test_boxes_lie_inside_the_image_and_have_an_area(height, width):
    rows = crops(height, width, np.arange(500))
    assert (rows[:, [HEIGHT, WIDTH]] >= 1).all() and (rows[:, [TOP, LEFT]] >= 0).all()
    assert (rows[:, TOP] + rows[:, HEIGHT] <= height).all() and (rows[:, LEFT] + rows[:, WIDTH] <= width).all()


def test_a_crop_depends_on_the_image_and_not_on_its_place_in_the_order():
    forward, backward = crops(300, 400, np.arange(100)), crops(300, 400, np.arange(100)[::-1])
    np.testing.assert_array_equal(forward, backward[::-1])
    np.testing.assert_array_equal(crops(300, 400, [17])[0], forward[17])


def test_crops_differ_between_images_epochs_and_neighbouring_seeds():
    base = crops(300, 400, np.arange(100), seed=7, epoch=1)
    assert len({tuple(row[1:5]) for row in base}) > 95
    for other in (crops(300, 400, np.arange(100), seed=7, epoch=2), crops(300, 400, np.arange(100), seed=8, epoch=0)):
        assert (base[:, TOP:FLIP] == other[:, TOP:FLIP]).all(axis=1).mean() < 0.05


@pytest.mark.parametrize("height, width", [(375, 500), (100, 700)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = crops(height, width, np.arange(4000))[:, TOP:FLIP]
    quantiles = (0.05, 0.25, 0.5, 0.75, 0.95)
    for column, side in enumerate((height, width, height, width)):
        difference = np.quantile(ours[:, column], quantiles) - np.quantile(theirs[:, column], quantiles)
        assert np.abs(difference).max() < 0.05 * side


def test_flips_come_at_their_probability_and_can_be_off():
    assert abs(crops(30, 40, np.arange(4000))[:, FLIP].mean() - 0.5) < 0.03
    sizes = np.full(50, 30)
    for probability in (0.0, 1.0):
        rows = seeded_crops(sizes, sizes, np.arange(50), seed=0, epoch=0, scale=SCALE, ratio=RATIO,
                            flip_probability=probability)  # fmt: skip
        assert (rows[:, FLIP] == probability).all()


def test_the_central_box_of_an_image_too_narrow_or_too_wide_keeps_the_ratio_as_torchvisions():
    height, width = 400, 40
    row = seeded_crops(np.array([height]), np.array([width]), np.array([5]), seed=0, epoch=0, scale=(1.0, 1.0),
                       ratio=RATIO, flip_probability=0)[0]  # fmt: skip
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [1.0, 1.0], list(RATIO))
    assert tuple(row[TOP:FLIP]) == tuple(theirs)


def test_the_centre_crop_is_the_central_square_of_the_asked_fraction():
    rows = centre_crops(np.array([256, 300, 1]), np.array([256, 500, 9]), np.array([4, 2, 0]), crop_fraction=0.875)
    assert rows[:, INDEX].tolist() == [4, 2, 0]
    assert rows[0, TOP:].tolist() == [16, 16, 224, 224, 0]
    assert rows[1, TOP:].tolist() == [19, 119, 262, 262, 0]
    assert rows[2, TOP:].tolist() == [0, 4, 1, 1, 0]
