"""Class names: labels of training, validation and teacher must mean the same."""

import shutil
from dataclasses import replace

import pytest
import torch

from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.images import check_classes
from vitkd_ds.recipes import build_run
from vitkd_ds.train.parts import build_parts


@pytest.mark.parametrize("found, message", [
    (("dog", "cat"), "found class 0 'dog' where data.train has 'cat'"),
    (("cat",), "found no 'dog'"), (("cat", "dog", "eel"), "found also 'eel'"),
    (("cat", "eel"), "found no 'dog' and also 'eel'"),
    (tuple("abcdefg"), "no 'cat', 'dog' and also 'a', 'b', 'c', 'd', 'e' and 2 more:"),
])  # fmt: skip
def test_what_is_missing_or_too_much_or_the_first_difference_is_named(found, message):
    check_classes(("cat", "dog"), ("cat", "dog"), source="data.val")
    with pytest.raises(ValueError, match=f"data.val must have the classes of data.train.*{message}"):
        check_classes(("cat", "dog"), found, source="data.val")


@pytest.mark.parametrize("missing, error", [
    ("bird", "data.val must have the classes of data.train in the same order, found no 'bird': pack both"),
    ("", "data.train must have data.num_classes=2 classes, found 3 .* set --data.num_classes=3"),
])  # fmt: skip
def test_a_class_that_validation_lacks_is_named_before_the_run(tmp_path, missing, error):
    src = write_images(tmp_path / "images", 12, classes=("ant", "bird", "cat"))
    train = pack(src, tmp_path / "train.beton", workers=1).path
    if missing:
        shutil.rmtree(src / missing)
    val = pack(src, tmp_path / "val.beton", workers=1).path
    run = build_run("demo_plain", debug=True)
    data = replace(run.data, train=str(train), val=str(val), num_classes=3 if missing else 2, num_workers=1)
    run = replace(run, data=data, global_batch_size=4, micro_batch_size_per_gpu=4)
    with pytest.raises(ValueError, match=error) as caught:
        build_parts(run, torch.device("cpu"))
    assert not missing or "num_classes" not in str(caught.value)
