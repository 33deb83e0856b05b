"""Class names: labels of training, validation and teacher must mean the same."""

import pytest

from vitkd_ds.job import check_classes


def test_equal_classes_pass():
    check_classes(("cat", "dog"), ("cat", "dog"), source="data.val")


@pytest.mark.parametrize("found, message", [
    (("dog", "cat"), "found class 0 'dog' where data.train has 'cat'"),
    (("cat",), "found class 1 None where data.train has 'dog'"),
    (("cat", "dog", "eel"), "found class 2 'eel' where data.train has None"),
])  # fmt: skip
def test_the_first_difference_is_named(found, message):
    with pytest.raises(ValueError, match=f"data.val must have the classes of data.train.*{message}"):
        check_classes(("cat", "dog"), found, source="data.val")
