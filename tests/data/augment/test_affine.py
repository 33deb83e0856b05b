"""The geometric operations against timm's on the same images: what differs, by how much, and how often."""

from itertools import product

import numpy as np
import pytest
import torch

from tests.data.augment.samples import SIZES, by_timm, in_pillow, levels_apart, pixels
from vitkd_ds.config.run import AugmentConfig
from vitkd_ds.data.augment.affine import FILL
from vitkd_ds.data.augment.augmenter import Augmenter
from vitkd_ds.data.augment.policy import OPS, SIGNED_RANGES, Layer

ARGUMENTS = {
    "Rotate": [-30.0, -13.7, 0.0, 1e-3, 7.1, 27.3], "ShearX": [-0.3, -0.27, 0.0, 0.013, 0.29],
    "ShearY": [-0.3, -0.27, 0.0, 0.013, 0.29], "TranslateXRel": [-0.9, -0.45, 0.0, 0.1, 0.4057],
    "TranslateYRel": [-0.9, -0.45, 0.0, 0.1, 0.4057],
}  # fmt: skip
"""Their values are almost whole numbers, or nothing moves."""


def apply(op, images, arguments, is_cubic):
    layer = Layer(np.full(len(images), OPS.index(op)), np.array(arguments), np.full(len(images), is_cubic))
    result = images.clone()
    Augmenter(AugmentConfig())._apply(result, layer)
    return result


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("is_cubic", [False, True])
@pytest.mark.parametrize("op", ARGUMENTS)
def test_geometric_operations_equal_timms_but_for_rare_single_levels(op, is_cubic, height, width):
    images, parts = pixels(height, width), []
    scattered = np.random.default_rng(0).uniform(-1, 1, 8) * SIGNED_RANGES[op]
    for argument in [*scattered, *ARGUMENTS[op]]:
        theirs = in_pillow(images, lambda image, _, argument=argument: by_timm(op, image, argument, is_cubic))
        largest, part = levels_apart(apply(op, images, [argument] * len(images), is_cubic), theirs)
        assert largest <= 1 and part < 0.03 and (argument or not largest), (argument, part)
        parts.append(part)
    assert np.mean(parts[:8]) < 2e-4


@pytest.mark.parametrize("op", ARGUMENTS)
def test_each_image_has_its_own_argument(op):
    images = pixels(33, 47)
    arguments = ARGUMENTS[op][1:5]
    together = apply(op, images, arguments, True)
    for i, argument in enumerate(arguments):
        assert torch.equal(together[i : i + 1], apply(op, images[i : i + 1], [argument], True))


def test_what_a_far_shift_uncovers_is_all_fill_and_flat_images_stay_flat_where_they_are_covered():
    images, fill = pixels(28, 28), torch.tensor(FILL, dtype=torch.uint8)
    for op, argument in product(("TranslateXRel", "TranslateYRel"), (-1.5, 1.0, 9.0)):
        assert (apply(op, images, [argument] * 4, True) == fill).all()
    for op, is_cubic in product(ARGUMENTS, (False, True)):
        result = apply(op, images[2:3], ARGUMENTS[op][1:2], is_cubic).view(-1, 3)
        is_fill = (result == fill).all(1)
        assert 0 < is_fill.sum() < len(result) and (result[~is_fill] == images[2, 0, 0]).all()
