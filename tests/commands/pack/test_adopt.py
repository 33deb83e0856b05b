"""`adopt` and `check`: a .beton from stock FFCV trains like a packed one, and damaged images are named by number."""

import json
import os
import shutil
import tempfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.beton.test_decode import photo
from tests.data.beton.test_scans import scan_ends
from tests.data.conftest import write_images
from tests.data.test_image_file import file_of
from vitkd_ds import cli
from vitkd_ds.commands.pack import pack
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.beton.ffcv import IntField, RGBImageField
from vitkd_ds.data.beton.format import check_beton, read_beton, read_tables
from vitkd_ds.data.beton.side_file import side_path
from vitkd_ds.data.image_file import load_rgb
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.sources import open_source

NUM_IMAGES = 90


class Slow(list):
    """Slow samples, so that FFCV's processes take turns."""

    def __getitem__(self, i):
        time.sleep(0.01)
        return super().__getitem__(i)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same images packed by us as raw pixels, and written by stock FFCV in three processes."""
    from ffcv.writer import DatasetWriter  # only after vitkd_ds has imported ffcv safely

    root = tmp_path_factory.mktemp("files")
    ours = pack(write_images(root / "images", NUM_IMAGES), root / "ours.beton", write_mode="raw", workers=1).path
    source = open_source(root / "images")
    samples = Slow((load_rgb(source.read(i)), int(label)) for i, label in enumerate(source.labels))
    for mode in ("raw", "jpg"):
        for _ in range(10):  # on a busy machine the first process may write all images before the second one starts
            fields = {"image": RGBImageField(mode), "label": IntField()}
            writer = DatasetWriter(str(root / f"{mode}.beton"), fields, num_workers=3, page_size=2**23)
            writer.from_indexed_dataset(samples, chunksize=7)
            if is_mixed(root / f"{mode}.beton"):
                break
    (root / "classes.txt").write_text("a\nb\n")
    return root, ours


def is_mixed(path):
    """Whether the images are stored out of order because FFCV's processes took turns."""
    return bool((np.diff(read_tables(path).allocations["sample"].astype(np.int64)) < 0).any())


@pytest.fixture
def stock(files, tmp_path):
    """A copy of FFCV's files and the class list."""
    for name in ("raw.beton", "jpg.beton", "classes.txt"):
        shutil.copy(files[0] / name, tmp_path)
    return tmp_path


@pytest.fixture
def vitkd_ds(monkeypatch, capsys):
    """Run a command in this process; return its exit code and output."""

    def run(*words):
        monkeypatch.setattr("sys.argv", ["vitkd-ds", *map(str, words)])
        try:
            cli.main()
        except SystemExit as ended:
            return ended.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return run


def test_an_adopted_file_gives_the_same_micro_batches_as_our_own(files, stock, vitkd_ds):
    path, before = stock / "raw.beton", (stock / "raw.beton").read_bytes()
    code, said = vitkd_ds("adopt", path, "--classes", stock / "classes.txt")
    assert code == 0 and f"{path}: {NUM_IMAGES} images in 2 classes" in said and path.read_bytes() == before
    assert is_mixed(path), "otherwise this test checks nothing"
    batches = []
    for train in (files[1], path):
        data = DataConfig(train=str(train), val=str(train), image_size=24, num_classes=2)
        batches.append([*build_loader(data, split="train", micro_batch_size=10, seed=3).epoch(0)])
    assert len(batches[0]) == 9
    for (images, labels), (other_images, other_labels) in zip(*batches, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_the_side_file_records_the_known_facts(stock, vitkd_ds):
    for name, options, is_shuffled in (("raw", [], False), ("jpg", ["--shuffled"], True)):
        assert vitkd_ds("adopt", stock / f"{name}.beton", "--classes", stock / "classes.txt", *options)[0] == 0
        info = check_beton(stock / f"{name}.beton")
        assert (info.write_mode, info.shuffled, info.classes) == (name, is_shuffled, ("a", "b"))
        assert (info.max_height, info.max_width, info.quality) == (90, 100, 0)
        assert vitkd_ds("check", info.path) == (0, f"{info.path}: all {NUM_IMAGES} images are intact\n")
    code, said = vitkd_ds("adopt", stock / "jpg.beton", "--classes", stock / "classes.txt")
    assert code == 2 and "already has a side file" in said


@pytest.mark.parametrize(
    "names, message",
    [
        ("a\n", r"labels in \[0, 1\), but image 45 has label 1"),
        ("a\na\n", "lists class 'a' 2 times"),
        (None, "needs --classes"),
    ],
)
def test_unfit_classes_are_rejected_and_nothing_is_written(stock, vitkd_ds, names, message):
    (stock / "classes.txt").write_text(names or "")
    options = ["--classes", stock / "classes.txt"] if names else []
    code, said = vitkd_ds("adopt", stock / "raw.beton", *options)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)
    assert code == 2 and not side_path(stock / "raw.beton").exists()


def test_adopt_rejects_undecodable_images_and_check_rejects_changed_ones(stock, vitkd_ds):
    path, content = stock / "jpg.beton", bytearray((stock / "jpg.beton").read_bytes())
    places = read_tables(path).metadata["offset"].astype(int)
    cut = bytearray(content)
    cut[places[5] : places[5] + 200] = bytes(200)
    path.write_bytes(cut)
    words = ["adopt", path, "--classes", stock / "classes.txt"]
    code, said = vitkd_ds(*words)
    assert code == 2 and f"1 of {NUM_IMAGES} images in" in said and "are damaged: image 5 is a damaged JPEG" in said
    assert not side_path(path).exists()
    path.write_bytes(content)
    assert vitkd_ds(*words)[0] == 0
    for row in range(20, 32):
        content[places[row] + 2] ^= 1
    path.write_bytes(content)
    code, said = vitkd_ds("check", path)
    assert (
        code == 2
        and f"12 of {NUM_IMAGES} images in" in said
        and "are damaged: image 20 has changed since it was packed" in said
    )
    assert "image 29 " in said and "image 30 " not in said and "and 2 more. Copy the file again" in said
    assert read_beton(path)[0].num_images == NUM_IMAGES, "the tables are whole"


def test_a_missing_or_foreign_side_file_is_distinguished_from_damage(stock, vitkd_ds):
    code, said = vitkd_ds("check", stock / "raw.beton")
    assert code == 2 and "must have its side file" in said and "vitkd-ds adopt" in said
    code, said = vitkd_ds("adopt", stock / "no.beton", "--classes", stock / "classes.txt")
    assert code == 2 and "no file at" in said
    side_path(stock / "raw.beton").write_text(json.dumps({"mine": 1}))
    assert vitkd_ds("adopt", stock / "raw.beton", "--classes", stock / "classes.txt")[0] == 2
    assert json.loads(side_path(stock / "raw.beton").read_text()) == {"mine": 1}


def test_a_folder_that_cannot_be_written_is_rejected_before_the_images_are_read(stock, vitkd_ds):
    with tempfile.TemporaryDirectory() as top:  # not below pytest's folder, which only its owner may enter
        for name in ("raw.beton", "classes.txt"):
            shutil.copy(stock / name, top)
        before = os.getresuid()
        os.chmod(top, 0o555)
        os.setresuid(65534 if before[0] == 0 else -1, -1, -1)  # root ignores file permissions
        try:
            code, said = vitkd_ds("adopt", f"{top}/raw.beton", "--classes", f"{top}/classes.txt")
        finally:
            os.setresuid(*before)
        assert code == 2 and f"no write permission in {top!r}" in said
        assert sorted(os.listdir(top)) == ["classes.txt", "raw.beton"]
        os.chmod(top, 0o755)


def test_a_file_with_a_jpeg_that_lacks_scans_is_not_adopted(tmp_path, vitkd_ds):
    jpeg = file_of(Image.fromarray(photo(40, 50)), "JPEG", progressive=True)
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "0.jpg").write_bytes(jpeg)
    path = pack(tmp_path / "images", tmp_path / "x.beton", passthrough=True, workers=1).path
    lacking = jpeg[: scan_ends(jpeg)[0]] + b"\xff\xd9"
    _, (image,), _ = read_beton(path)
    with open(path, "r+b") as file:
        file.seek(int(image["offset"]))
        file.write(lacking.ljust(len(jpeg), b"\0"))
    side_path(path).unlink()
    (tmp_path / "classes.txt").write_text("a\n")
    code, said = vitkd_ds("adopt", path, "--classes", tmp_path / "classes.txt")
    assert code == 2 and "image 0 is a JPEG with missing scans" in said
    assert not side_path(path).exists()
