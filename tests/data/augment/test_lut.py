"""Every table operation against timm and Pillow on the same images, bit for bit."""

import numpy as np
import pytest
import torch
from timm.data import auto_augment

from tests.data.augment.samples import SIZES, by_timm, in_pillow, pixels
from vitkd_ds.data.augment import lut

FIXED = {
    "Invert": [0.0], "Posterize": [-4.0, 0.0, 1.0, 2.0, 3.0, 4.0], "Solarize": [0.0, 1.0, 25.0, 128.0, 255.0, 256.0],
    "SolarizeAdd": [0.0, 55.0, 99.0, 110.0], "Brightness": [0.1, 0.19, 0.7, 1.0, 1.3, 1.81, 1.9],
}  # fmt: skip


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("op", [*FIXED, "Contrast"])
def test_operations_with_an_argument_equal_timms_bit_for_bit(op, height, width):
    values = FIXED.get(op, FIXED["Brightness"])
    arguments, images = np.repeat(values, 4), pixels(height, width).repeat(len(values), 1, 1, 1)
    if op == "Contrast":
        tables = lut.contrast_tables(images, torch.from_numpy(arguments).float())
    else:
        tables = torch.from_numpy(lut.fixed_tables(op, arguments))[:, None].expand(-1, 3, -1)
    theirs = in_pillow(images, lambda image, i: by_timm(op, image, float(arguments[i])))
    assert torch.equal(lut.apply_tables(images, tables), theirs)


@pytest.mark.parametrize("height, width", [*SIZES, (5, 5), (1, 1)])
@pytest.mark.parametrize("op", ["AutoContrast", "Equalize"])
def test_auto_contrast_and_equalize_equal_timms_bit_for_bit(op, height, width):
    images = pixels(height, width)
    images = torch.cat([images, images // 3 + 40])
    ours = lut.apply_tables(images, lut.MEASURED_OPS[op](images))
    assert torch.equal(ours, in_pillow(images, lambda image, _: by_timm(op, image, None)))


def test_auto_contrast_equals_pillows_for_every_pair_of_extreme_levels():
    for low in range(0, 256, 7):
        highs = np.arange(low, 256)
        ramp = np.linspace(low, highs, 256).astype(np.uint8).T
        images = torch.from_numpy(np.repeat(ramp[:, None, :, None], 3, 3))
        ours = lut.apply_tables(images, lut.autocontrast_tables(images))
        assert torch.equal(ours, in_pillow(images, lambda image, _: auto_augment.auto_contrast(image)))


def test_tables_of_different_images_and_channels_stay_apart():
    images = torch.arange(2 * 3 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 3)
    tables = torch.stack([torch.full((256,), value, dtype=torch.uint8) for value in range(6)]).view(2, 3, 256)
    expected = torch.arange(6, dtype=torch.uint8).view(2, 1, 1, 3).expand(2, 3, 4, 3)
    assert torch.equal(lut.apply_tables(images, tables), expected)
