"""Class folders to pack."""

import pytest

from tests.data.conftest import write_images


@pytest.fixture
def photos(tmp_path):
    """Create photos/train with three classes and photos/val with two of them."""
    write_images(tmp_path / "photos" / "train", 12, classes=("ant", "bird", "cat"))
    write_images(tmp_path / "photos" / "val", 6, classes=("ant", "cat"))
    return tmp_path / "photos"
