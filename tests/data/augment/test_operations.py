"""Every compiled operation against timm's and Pillow's on the same images, bit for bit."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from tests.data.augment.samples import FILL, SIZES, by_timm, operate, pixels
from vitkd_ds.data.augment.policy import OPS, SIGNED_RANGES
from vitkd_ds.data.beton import decode

FACTORS = [0.0, 0.1, 0.19, 0.7, 1.0, 1.3, 1.81, 1.9]
SHIFTS = [-0.9, -0.45, 0.0, 0.1, 0.25, 0.4057, 1.0, 9.0]
ARGUMENTS = {
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
    "Posterize": [-4.0, 0.0, 1.0, 2.0, 3.0, 4.0],
    "Solarize": [0.0, 1.0, 25.0, 128.0, 255.0, 256.0],
    "SolarizeAdd": [0.0, 55.0, 99.0, 110.0],
    "Color": FACTORS,
    "Contrast": FACTORS,
    "Brightness": FACTORS,
    "Sharpness": FACTORS,
    "Rotate": [-30.0, -13.7, 0.0, 1e-3, 7.1, 27.3],
    "ShearX": [-0.3, -0.27, 0.0, 0.013, 0.29],
    "ShearY": [-0.3, -0.27, 0.0, 0.013, 0.29],
    "TranslateXRel": SHIFTS,
    "TranslateYRel": SHIFTS,
    "GaussianBlur": [0.1, 0.35, 0.577, 0.578, 0.9, 1.2, 1.63, 1.64, 2.0],
}
"""Includes values for no shift, a complete shift, and a result that is almost a whole number."""


@pytest.fixture(params=[16, 32])
def vector_bytes(request, monkeypatch):
    """The compiled code for each vector width; if this CPU lacks one, the widest that it has."""
    monkeypatch.setattr(decode, "WIDEST", min(request.param, decode._library.vitkd_widest_vector()))


def test_the_argument_table_covers_all_operations():
    assert list(ARGUMENTS) and set(ARGUMENTS) == set(OPS)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_each_operation_equals_timms_bit_for_bit(op, height, width, vector_bytes):
    few = pixels(height, width)
    few = np.concatenate([few, few // 3 + 40])
    scattered = np.random.default_rng(0).uniform(-1, 1, 8) * SIGNED_RANGES[op] if op in SIGNED_RANGES else []
    for is_cubic in (False, True) if op in SIGNED_RANGES else (False,):
        arguments = np.repeat([*ARGUMENTS[op], *scattered], len(few))
        images = np.tile(few, (len(arguments) // len(few), 1, 1, 1))
        ours = operate(op, images, arguments, is_cubic)
        for i, (image, argument) in enumerate(zip(images, arguments.tolist(), strict=True)):
            theirs = np.asarray(by_timm(op, Image.fromarray(image), argument, is_cubic))
            np.testing.assert_array_equal(ours[i], theirs, err_msg=f"{op} {argument} image {i}")


def test_auto_contrast_equals_pillows_for_every_pair_of_extreme_levels(vector_bytes):
    for low in range(0, 256, 7):
        ramps = np.linspace(low, np.arange(low, 256), 256).astype(np.uint8).T
        images = np.ascontiguousarray(np.repeat(ramps[:, None, :, None], 3, 3))
        theirs = [np.asarray(by_timm("AutoContrast", Image.fromarray(image), 0.0)) for image in images]
        np.testing.assert_array_equal(operate("AutoContrast", images, [0.0] * len(images)), theirs)


def test_grey_levels_equal_pillows_for_a_grid_of_all_colours(vector_bytes):
    axis = np.arange(0, 256, 5, dtype=np.uint8)
    images = np.ascontiguousarray(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1))
    theirs = [np.asarray(Image.fromarray(image).convert("L").convert("RGB")) for image in images]
    np.testing.assert_array_equal(operate("Color", images, [0.0] * len(images)), theirs)


def test_a_far_shift_leaves_only_fill_and_flat_images_stay_flat_where_covered():
    images = pixels(28, 28)
    for op, argument in product(("TranslateXRel", "TranslateYRel"), (-1.5, 1.0, 9.0)):
        assert (operate(op, images, [argument] * 4, True) == FILL).all()
    for op, is_cubic in product(SIGNED_RANGES, (False, True)):
        result = operate(op, images[2:3], ARGUMENTS[op][1:2], is_cubic).reshape(-1, 3)
        is_fill = (result == FILL).all(1)
        assert 0 < is_fill.sum() < len(result) and (result[~is_fill] == images[2, 0, 0]).all()
