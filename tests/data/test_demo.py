"""The demo data: in the package, packed once into the cache, safe when many processes start at once."""

import gzip
import struct
import subprocess
import sys
import zipfile
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.data.demo import (
    CLASSES,
    IDX_PREFIX,
    cache_dir,
    demo_beton,
    read_idx,
    write_image_folders,
    write_subset,
)
from vitkd_ds.data.loader import build_loader

ARCHIVE = resources.files("vitkd_ds.data") / "demo" / "fashion_mnist_subset.zip"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of its own for this module."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITKD_DS_CACHE", str(folder))
        yield folder


def test_the_archive_holds_balanced_classes_and_the_licence():
    with zipfile.ZipFile(str(ARCHIVE)) as archive:
        names = archive.namelist()
        assert b"Zalando SE" in archive.read("LICENSE")
    for split, per_class in (("train", 600), ("val", 200)):
        for name in CLASSES:
            assert sum(member.startswith(f"{split}/{name}/") for member in names) == per_class
    assert len(names) == 8001


def test_processes_that_start_at_once_share_one_packed_file(cache):
    code = "from vitkd_ds.data.demo import demo_beton; print(demo_beton('val'))"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=60)[0].strip() for process in processes}
    assert all(process.returncode == 0 for process in processes)
    assert paths == {str(demo_beton("val"))}
    info = check_beton(demo_beton("val"))
    assert info.num_images == 2000 and info.classes == CLASSES and info.write_mode == "raw"
    assert sorted(p.name for p in info.path.parent.iterdir()) == ["val.beton", "val.beton.json", "val.lock"]


def test_a_damaged_file_in_the_cache_is_packed_again(cache):
    path = demo_beton("val")
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert demo_beton("val") == path and check_beton(path).num_images == 2000
    written = path.stat().st_mtime_ns
    assert demo_beton("val").stat().st_mtime_ns == written


def test_the_loader_reads_the_demo_by_name(cache):
    data = DataConfig(train="demo", val="demo", image_size=32, num_classes=10, num_workers=1)
    loader = build_loader(data, split="train", micro_batch_size=100, global_batch_size=200)
    assert loader.steps_per_epoch == 30 and loader.num_batches == 60
    labels = np.concatenate([labels.numpy() for _, labels in loader.epoch(0)])
    assert np.bincount(labels).tolist() == [600] * 10


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for key, value, expected in [
        ("VITKD_DS_CACHE", "/a", "/a"), ("XDG_CACHE_HOME", "/b", "/b/vitkd_ds"), ("HOME", "/c", "/c/.cache/vitkd_ds"),
    ]:  # fmt: skip
        for name in ("VITKD_DS_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(key, value)
        assert str(cache_dir()) == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITKD_DS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set VITKD_DS_CACHE to another"):
        demo_beton("val")
    with pytest.raises(ValueError, match="split must be one of train, val"):
        demo_beton("test")


def write_idx(folder, num_images):
    """Write idx files in the original's format, the classes in turn, each image filled with its number."""
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    images = np.repeat((np.arange(num_images) % 251).astype(np.uint8), 4).reshape(-1, 2, 2)
    for prefix in IDX_PREFIX.values():
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(header + values.tobytes())
    return folder


def test_idx_files_become_class_folders(tmp_path):
    idx_dir = write_idx(tmp_path, 30)
    write_image_folders(idx_dir, tmp_path / "images")
    for split in ("train", "val"):
        assert sorted(p.name for p in (tmp_path / "images" / split).iterdir()) == sorted(CLASSES)
    assert len(list((tmp_path / "images" / "train").rglob("*.png"))) == 30
    assert np.array(Image.open(tmp_path / "images" / "val" / CLASSES[4] / "00014.png")).tolist() == [[14] * 2] * 2
    with pytest.raises(ValueError, match="must not exist yet"):
        write_image_folders(idx_dir, tmp_path / "images")


def test_the_archive_has_the_same_bytes_each_time(tmp_path):
    idx_dir = write_idx(tmp_path, 6100)
    for name in ("one.zip", "two.zip"):
        write_subset(idx_dir, tmp_path / name, "licence")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_missing_and_damaged_idx_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="install Debian's dataset-fashion-mnist"):
        write_image_folders(tmp_path, tmp_path / "images")
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        file.write(b"\0\0\x08\x01\0\0\0\x09abc")
    with pytest.raises(ValueError, match="must be an idx file"):
        read_idx(tmp_path / "x.gz")
