"""Color, Sharpness and the blur against Pillow on the same images, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import ImageEnhance, ImageFilter, ImageOps

from tests.data.augment.samples import SIZES, in_pillow, pixels
from vitkd_ds.data.augment.blends import color, grey_levels, planar, sharpness
from vitkd_ds.data.augment.blur import box_weights, gaussian_blur

FACTORS = [0.0, 0.1, 0.19, 0.7, 1.0, 1.3, 1.81, 1.9]


@pytest.mark.parametrize("height, width", [*SIZES, (5, 3), (3, 3), (2, 9), (2, 2), (1, 1)])
def test_color_sharpness_and_the_gaussian_blur_equal_pillows_bit_for_bit(height, width):
    factors, images = np.repeat(FACTORS, 4), pixels(height, width).repeat(len(FACTORS), 1, 1, 1)
    for ours, theirs in ((color, ImageEnhance.Color), (sharpness, ImageEnhance.Sharpness)):
        expected = in_pillow(images, lambda image, i, theirs=theirs: theirs(image).enhance(float(factors[i])))
        assert torch.equal(ours(images, torch.from_numpy(factors).float()), expected)
    radii = np.linspace(0.1, 2, len(images))
    expected = in_pillow(images, lambda image, i: image.filter(ImageFilter.GaussianBlur(float(radii[i]))))
    assert torch.equal(gaussian_blur(images, torch.from_numpy(box_weights(radii))), expected)


def test_grey_levels_equal_pillows_for_a_grid_of_all_colours():
    axis = torch.arange(0, 256, 5, dtype=torch.uint8)
    images = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    assert torch.equal(grey_levels(planar(images)), in_pillow(images, lambda image, _: ImageOps.grayscale(image)).int())
