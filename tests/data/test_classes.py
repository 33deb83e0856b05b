"""A single class is an error with a working remedy, wherever it is detected."""

import re
import shlex
from dataclasses import replace

import pytest

from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.commands.parse import parse_run
from vitkd_ds.config.options import apply_options
from vitkd_ds.data.loader import build_loader
from vitkd_ds.recipes import build_run

FOUND = r"data.train needs two or more classes, but '.*photos(.beton)?' has one. .* \((--.*)\)"


def remedy_of(error):
    """The options that an error message suggests, as parse_run takes them."""
    words = shlex.split(re.search(FOUND, str(error.value))[2])
    return dict(word.removeprefix("--").split("=") for word in words)


def test_one_class_is_an_error_whose_remedy_passes_the_next_check(tmp_path):
    src = write_images(tmp_path / "photos", 8, classes=("a",))
    data = {"data.train": str(src), "data.val": str(src)}
    with pytest.raises(ValueError, match=FOUND) as counted:
        parse_run((), {"recipe": "demo_plain", "data.num_classes": "0"} | data)
    run = build_run("demo_plain", debug=True)
    run = replace(run, data=replace(run.data, train=str(src), val=str(src)))
    with pytest.raises(ValueError, match=FOUND) as folder:
        pack_folders(run)
    with pytest.raises(ValueError, match=FOUND) as torchvision:
        build_loader(replace(run.data, backend="torchvision"), split="train", micro_batch_size=2)
    packed = replace(run.data, train=str(pack(src, tmp_path / "photos.beton", workers=1).path))
    with pytest.raises(ValueError, match=FOUND) as beton:
        build_loader(packed, split="train", micro_batch_size=2)
    assert len({tuple(remedy_of(error).items()) for error in (counted, folder, torchvision, beton)}) == 1
    parse_run((), {"recipe": "demo_label_free", **data, **remedy_of(counted)})
    without_labels = apply_options(run, remedy_of(beton)).data
    for changes in ({}, {"train": packed.train}):
        train = replace(without_labels, backend="torchvision", **changes)
        assert build_loader(train, split="train", micro_batch_size=2).classes == ()
