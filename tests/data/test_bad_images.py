"""Images that fail to decode: an error that names file and image, or the next image instead; never wrong pixels."""

import logging
import os
import threading

import numpy as np
import pytest
import torch

from tests.data.conftest import write_beton
from tests.data.test_loader import config, epoch_of
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.bad_images import PADDING_LABEL
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.loader import build_loader


@pytest.fixture
def path(tmp_path):
    """8 JPEGs: 0 to 3 in class a, 4 to 7 in class b."""
    return write_beton(tmp_path, 8)


def overwrite(path, index, content, *, at=0):
    """Change stored bytes of one image from offset `at` on; the tables stay the same."""
    with open(path, "r+b") as file:
        file.seek(int(read_beton(path)[1][index]["offset"]) + at)
        file.write(content)


def test_changed_bytes_give_an_error_that_names_file_and_image(path):
    loader = build_loader(config(path), split="val", micro_batch_size=2)
    overwrite(path, 5, bytes(40), at=200)
    threads, seen = threading.active_count(), 0
    with pytest.raises(ValueError, match=r"x.beton' has a bad image: image 5 \(class 'b'\) has changed since"):
        for _ in loader.epoch(0):
            seen += 1
    assert seen == 2 and threading.active_count() == threads


@pytest.mark.parametrize("how", ["in place", "in place, its time restored", "renamed"])
def test_pixels_changed_between_two_passes_are_detected_in_the_second(tmp_path, how, caplog):
    path = write_beton(tmp_path, 8, write_mode="raw")
    loader = build_loader(config(path), split="val", micro_batch_size=2)
    whole = epoch_of(loader)
    assert loader._images.decoder.table["checked"].all()
    epoch_of(loader)
    assert "checked anew" not in caplog.text
    if how.startswith("in place"):
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        overwrite(path, 5, bytes(40), at=200)
        if "restored" in how:
            os.utime(path, ns=times)
        with pytest.raises(ValueError, match=r"image 5 \(class 'b'\) has changed since it was packed"):
            epoch_of(loader)
    else:  # open files keep their old content
        copy = tmp_path / "copy"
        copy.write_bytes(path.read_bytes())
        copy.rename(path)
        assert all(map(torch.equal, epoch_of(loader)[0], whole[0]))
    assert f"'{path}' was changed or replaced while it was open" in caplog.text


def test_skip_substitutes_the_next_decodable_image_and_counts(path, caplog):
    good = build_loader(config(path), split="train", micro_batch_size=4, global_batch_size=8)
    order, (images, labels) = good._train_order(0)["index"], map(torch.cat, epoch_of(good))
    for index in (3, 4):
        overwrite(path, index, bytes(40), at=200)
    loader = build_loader(config(path, on_bad="skip"), split="train", micro_batch_size=4, global_batch_size=8, seed=0)
    with caplog.at_level(logging.WARNING):
        skipped_images, skipped_labels = map(torch.cat, epoch_of(loader))
    assert loader.num_skipped == 2 and caplog.text.count("skipping bad images of") >= 1
    assert "image 3 (class 'a')" in caplog.text and "image 4 (class 'b')" in caplog.text
    untouched = ~np.isin(order, (3, 4))
    assert torch.equal(images[untouched], skipped_images[untouched])
    assert skipped_labels[~untouched].tolist() == [1, 1]  # both take image 5, of class b
    assert torch.equal(labels[untouched], skipped_labels[untouched])
    assert (skipped_images[~untouched] != images[~untouched]).any() and skipped_images[~untouched].any()


def test_the_substitute_is_the_very_next_image(path):
    overwrite(path, 2, bytes(40), at=200)
    loader = build_loader(config(path, on_bad="skip"), split="train", micro_batch_size=4, global_batch_size=8)
    labels = torch.cat(epoch_of(loader)[1])[loader._train_order(0)["index"] == 2]
    assert loader.num_skipped == 1 and labels.tolist() == [0], "of image 3, as image 4 is of class b"


def test_skip_drops_the_image_in_validation_and_gives_up_if_nothing_decodes(path):
    overwrite(path, 3, bytes(40), at=200)
    loader = build_loader(config(path, on_bad="skip"), split="val", micro_batch_size=4)
    labels = torch.cat(epoch_of(loader)[1])
    assert labels.tolist() == [0, 0, 0, PADDING_LABEL, 1, 1, 1, 1] and loader.num_skipped == 1
    for index in range(8):
        overwrite(path, index, bytes(40), at=200)
    with pytest.raises(ValueError, match="none of the 100 images after image .* can be decoded"):
        epoch_of(build_loader(config(path, on_bad="skip"), split="train", micro_batch_size=4))


def test_a_file_truncated_while_open_ends_the_run_even_with_skip(path):
    data = [config(path, on_bad=on_bad) for on_bad in ("stop", "skip")]
    loaders = [build_loader(each, split="train", micro_batch_size=4) for each in data]
    os.truncate(path, int(read_beton(path)[1]["offset"][5]) + 10)
    for loader in loaders:
        with pytest.raises(ValueError, match="cannot be read completely: image .* cannot be read completely"):
            epoch_of(loader)


def test_an_image_without_a_label_is_named_by_its_number(tmp_path):
    src = write_beton(tmp_path, 8).parent / "images"
    path = pack(src, tmp_path / "plain.beton", labels="none", workers=1).path
    overwrite(path, 5, bytes(40), at=200)
    with pytest.raises(ValueError, match="plain.beton' has a bad image: image 5 has changed since"):
        epoch_of(build_loader(config(path, num_classes=0), split="val", micro_batch_size=4))
