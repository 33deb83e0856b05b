"""Packing: the file's contents and order, and the side file. Bad input: test_bad_pack.py."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import write_images
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.ffcv import Reader
from vitkd_ds.data.beton.format import check_beton, read_beton, read_tables
from vitkd_ds.data.beton.side_file import side_path

COMMAND = (sys.executable, "-c", "from vitkd_ds.cli import main; main()", "pack")


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def content_of(path):
    """The stored bytes of each image."""
    file = path.read_bytes()
    return [file[row["offset"] : row["offset"] + row["size"]] for row in read_tables(path).allocations]


def stored(path, index):
    """The raw pixels of an image, read with FFCV."""
    row = Reader(str(path)).metadata["f0"][index]
    shape = int(row["height"]), int(row["width"]), 3
    return np.fromfile(path, np.uint8, count=np.prod(shape), offset=int(row["data_ptr"])).reshape(shape)


def noise(count, height, width):
    """Images of the same noise, each shifted by its number."""
    first = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return [np.roll(first, i) for i in range(count)]


def one_class(tmp_path, files):
    """A folder with the class "only" and the given files: name to PIL image or bytes, or a list of pixels."""
    (tmp_path / "images" / "only").mkdir(parents=True)
    if isinstance(files, list):
        files = {f"{i:03d}.png": Image.fromarray(pixels) for i, pixels in enumerate(files)}
    for name, content in files.items():
        path = tmp_path / "images" / "only" / name
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return tmp_path / "images"


def test_raw_images_are_read_back_exactly_with_labels_in_name_order(tmp_path):
    src = write_images(tmp_path / "images", 9, classes=("b b", "ä", "a\n'\"", "0", "no utf-8"))
    os.rename(src / "no utf-8", os.fsencode(src) + b"/\xff\xfe")
    info = pack(src, tmp_path / "x.beton", write_mode="raw", workers=2)
    assert info == check_beton(tmp_path / "x.beton")
    assert info.classes == ("0", "a\n'\"", "b b", "ä", os.fsdecode(b"\xff\xfe")) and info.num_images == 9
    paths = sorted(src.rglob("*.png"), key=lambda p: (p.parent.name, p.name))
    for index, path in enumerate(paths):
        np.testing.assert_array_equal(stored(info.path, index), np.array(Image.open(path)))
    assert Reader(str(info.path)).metadata["f1"].tolist() == [info.classes.index(path.parent.name) for path in paths]


@pytest.mark.parametrize(
    "settings, shape",
    [
        ({"max_resolution": 50, "short_side": 0}, (25, 50, 3)),
        ({"max_resolution": 0, "short_side": 50}, (50, 100, 3)),
    ],
)
def test_larger_images_are_scaled_down_and_smaller_ones_kept(tmp_path, settings, shape):
    images = {"big.png": Image.new("RGB", (200, 100)), "small.png": Image.new("RGB", (30, 20))}
    info = pack(one_class(tmp_path, images), tmp_path / "x.beton", write_mode="raw", workers=1, **settings)
    assert stored(info.path, 0).shape == shape and stored(info.path, 1).shape == (20, 30, 3)
    assert (info.max_height, info.max_width) == shape[:2] and check_beton(info.path) == info
    assert (info.max_resolution, info.short_side) == tuple(settings.values())


def test_a_raw_image_larger_than_ffcvs_page_gets_a_larger_page(tmp_path):
    images = {"a.png": Image.new("RGB", (3000, 1000), (1, 2, 3)), "b.png": Image.new("RGB", (4, 4), (7, 8, 9))}
    info = pack(one_class(tmp_path, images), tmp_path / "x.beton", write_mode="raw", max_resolution=0, workers=1)
    assert stored(info.path, 0).shape == (1000, 3000, 3) and (stored(info.path, 0) == [1, 2, 3]).all()
    assert stored(info.path, 1)[0, 0].tolist() == [7, 8, 9]
    reader = Reader(str(info.path))
    assert reader.page_size == 2**24 and reader.metadata["f0"]["data_ptr"][0] % 2**24 == 0


def test_passthrough_keeps_the_bytes_of_jpegs_and_counts_them(tmp_path):
    src = write_images(tmp_path / "images", 12, ending="jpg")
    Image.new("RGB", (9, 9)).save(src / "b" / "zz.png")
    info = pack(src, tmp_path / "x.beton", passthrough=True, workers=2)
    assert (info.num_images, info.passthrough, info.max_resolution) == (13, 12, 0) and check_beton(info.path) == info
    paths = sorted(src.rglob("*.jpg"), key=lambda p: (p.parent.name, p.name))
    assert content_of(info.path)[:12] == [path.read_bytes() for path in paths]
    assert Image.open(io.BytesIO(content_of(info.path)[12])).format == "JPEG"
    smaller = pack(src, tmp_path / "y.beton", passthrough=True, max_resolution=64, workers=1)
    images = read_beton(info.path)[1][:12]
    assert smaller.passthrough == (np.maximum(images["height"], images["width"]) <= 64).sum() == 8


def test_originals_with_restart_markers_count_as_originals_and_have_the_same_pixels(tmp_path):
    src = write_images(tmp_path / "images", 4, ending="jpg")
    info = pack(src, tmp_path / "x.beton", passthrough=True, restart_markers=True, workers=1)
    assert info.passthrough == 4 and check_beton(info.path) == info
    paths = sorted(src.rglob("*.jpg"), key=lambda p: (p.parent.name, p.name))
    for content, path in zip(content_of(info.path), paths, strict=True):
        assert b"\xff\xdd\0\4" in content
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(content))), np.array(Image.open(path)))


def test_content_order_and_encoding_do_not_depend_on_the_number_of_workers(tmp_path):
    src = write_images(tmp_path / "images", 70, classes=("a", "b", "c"))
    found = {}
    for shuffle in (False, True):
        for n in (1, 2, 5):
            info = pack(src, tmp_path / f"{shuffle}{n}.beton", workers=n, shuffle=shuffle)
            assert check_beton(info.path) == info and info.shuffled == shuffle
            found[shuffle, n] = list(zip(content_of(info.path), read_beton(info.path)[2].tolist()))
        assert found[shuffle, 1] == found[shuffle, 2] == found[shuffle, 5]
    plain, shuffled = found[False, 1], found[True, 1]
    assert plain != shuffled and sorted(plain) == sorted(shuffled) and len({label for _, label in shuffled[:20]}) == 3
    assert [label for _, label in plain] == [0] * 24 + [1] * 23 + [2] * 23
    files = [pack(src, tmp_path / f"{n}.beton", write_mode="proportion", workers=n).path for n in (1, 2)]
    modes = [read_tables(path).metadata["mode"].tolist() for path in files]
    assert set(modes[0]) == {0, 1} and modes[0] == modes[1]


def test_images_that_exceed_a_page_are_stored_in_several(tmp_path):
    images = noise(8, 1000, 900)
    path = pack(one_class(tmp_path, images), tmp_path / "x.beton", write_mode="raw", max_resolution=0, workers=1).path
    assert content_of(path) == [pixels.tobytes() for pixels in images]
    reader = Reader(str(path))
    first, last = reader.alloc_table["ptr"], reader.alloc_table["ptr"] + reader.alloc_table["size"] - 1
    assert (first // 2**23 == last // 2**23).all() and len(set((first // 2**23).tolist())) == 3


def test_the_command_line_takes_every_option(tmp_path):
    src, dst = write_images(tmp_path / "images", 4, ending="jpg"), tmp_path / "x.beton"
    options = ["--passthrough", "--short_side=20", "--shuffle", "--quality", "80", "--workers", "1", "--skip_bad"]
    done = subprocess.run([*COMMAND, str(src), str(dst), *options], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    info = check_beton(dst)
    assert (info.shuffled, info.short_side, info.quality, info.num_images) == (True, 20, 80, 4)
    assert f"{dst}: 4 images in 2 classes" in done.stdout and side_path(dst).exists()


def test_images_without_class_folders_are_packed_without_labels_on_request(tmp_path):
    src = tmp_path / "images"
    (src / "deep").mkdir(parents=True)
    for name, pixels in zip(("deep/a.png", "b.png"), noise(2, 20, 16)):
        Image.fromarray(pixels).save(src / name)
    (src / "deep" / "a.png").rename(src / "a.png")
    words = [src, tmp_path / "x.beton", "--write_mode=raw"]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True)
    assert done.returncode == 2 and " FILE.beton --labels none), move" in done.stderr
    (src / "a.png").rename(src / "deep" / "a.png")
    done = subprocess.run([*COMMAND, *words, "--labels=none"], capture_output=True, text=True)
    assert f"{tmp_path / 'x.beton'}: 2 images without labels, 0 of them stored unchanged" in done.stdout, done.stderr
    info, _, labels = read_beton(tmp_path / "x.beton")
    assert info.classes == () and labels.tolist() == [0, 0]
    for index, pixels in enumerate(noise(2, 20, 16)[::-1]):
        np.testing.assert_array_equal(stored(tmp_path / "x.beton", index), pixels)
