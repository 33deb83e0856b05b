"""FFCV's loader with our decoder leaves FFCV as it was."""

import pytest

from tests.data.test_loader import config
from vitkd_ds.data.beton.ffcv import Compiler
from vitkd_ds.data.loader import build_loader


@pytest.mark.parametrize("is_enabled", [False, True])
def test_ffcvs_compiler_is_left_as_it_was(beton, is_enabled):
    before = Compiler.is_enabled
    Compiler.set_enabled(is_enabled)
    try:
        build_loader(config(beton), split="val", micro_batch_size=2)
        assert Compiler.is_enabled == is_enabled
    finally:
        Compiler.set_enabled(before)
