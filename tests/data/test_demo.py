"""The demo's packaged images and teacher; images are unpacked once even if many processes start together."""

import gzip
import json
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks.fashion_mnist import CHOICE_SEED, IDX_PREFIX, read_idx, write_archive, write_folders
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.demo import ARCHIVE, CLASSES, cache_dir, demo_beton
from vitkd_ds.data.draws import keyed_rng
from vitkd_ds.data.loader import build_loader
from vitkd_ds.models import build
from vitkd_ds.recipes import build_run
from vitkd_ds.train.evaluate import evaluate


@pytest.mark.parametrize(
    "split, per_class, pixels_crc32, labels_crc32",
    [
        ("train", 600, 2487443892, 527393522),
        ("val", 200, 1824510815, 156889720),
    ],
)
def test_pixels_order_and_labels_match_the_pngs_of_version_0_2(
    demo_cache, split, per_class, pixels_crc32, labels_crc32
):
    path = demo_beton(split)
    (info, images, labels), content = read_beton(path), memoryview(path.read_bytes())
    assert info.classes == CLASSES and (info.write_mode, info.shuffled, info.max_height) == ("raw", False, 28)
    assert np.bincount(labels).tolist() == [per_class] * 10 and zlib.crc32(labels.tobytes()) == labels_crc32
    stored = [content[image["offset"] :][: image["size"]] for image in images]
    assert zlib.crc32(b"".join(stored)) == pixels_crc32
    assert [zlib.crc32(pixels) for pixels in stored] == images["crc32"].tolist()


@pytest.mark.cold
def test_concurrent_processes_share_one_unpacked_file_and_leave_an_older_one_alone(demo_cache):
    older = demo_cache / "fashion_mnist_114563a9a565_2"  # the file of version 0.2
    older.mkdir()
    (older / "val.beton").write_text("")
    for file in demo_beton("val").parent.iterdir():
        file.unlink()
    code = "import sys; from vitkd_ds.data.demo import demo_beton; print(demo_beton('val'), *sys.modules)"
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    path = demo_beton("val")
    assert {words[0] for words in found} == {str(path)} and check_beton(path).num_images == 2000
    assert sorted(p.name for p in path.parent.iterdir()) == ["val.beton", "val.beton.json", "val.lock"]
    assert (older / "val.beton").read_text() == ""
    assert "vitkd_ds.data.beton.format" in found[0] and not {"vitkd_ds.commands", "ffcv", "torch"} & {*found[0]}
    # A damaged file is unpacked again; a whole one is left untouched.
    path.write_bytes(path.read_bytes()[:-1])
    assert demo_beton("val") == path and check_beton(path).num_images == 2000
    written = path.stat().st_mtime_ns
    assert demo_beton("val").stat().st_mtime_ns == written


@pytest.mark.parametrize("backend", ["ffcv", "torchvision"])
def test_the_loader_reads_the_demo_by_name(demo_cache, backend):
    data = DataConfig(train="demo", val="demo", image_size=32, num_classes=10, num_workers=1, backend=backend)
    loader = build_loader(data, split="train", micro_batch_size=100, global_batch_size=200)
    assert loader.steps_per_epoch == 30 and loader.num_batches == 60
    labels = np.concatenate([labels.numpy() for _, labels in loader.epoch(0)])
    assert np.bincount(labels).tolist() == [600] * 10


def test_the_packaged_files_are_small_and_licensed_and_the_teacher_has_its_accuracy(demo_cache):
    with zipfile.ZipFile(ARCHIVE) as archive:
        assert b"Zalando SE" in archive.read("LICENSE") and len(archive.namelist()) == 5
    assert ARCHIVE.stat().st_size < 5.5e6 and build.DEMO_TEACHER.stat().st_size < 4e6
    run = build_run("demo")
    teacher = build.build_teacher(run.teachers["teacher"], run.data)
    loader = build_loader(run.data, split="val", micro_batch_size=100)
    result = evaluate(teacher, loader, normalization=build.normalization_of(teacher))
    assert result["num_images"] == 2000 and 90.55 < result["top1"] < 91.75, "91.15 was measured"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    for key, value, expected in [
        ("VITKD_DS_CACHE", "/a", "/a"),
        ("XDG_CACHE_HOME", "/b", "/b/vitkd_ds"),
        ("HOME", "/c", "/c/.cache/vitkd_ds"),
    ]:
        for name in ("VITKD_DS_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(key, value)
        assert str(cache_dir()) == expected
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITKD_DS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="Set VITKD_DS_CACHE to another"):
        demo_beton("val")
    with pytest.raises(ValueError, match="split must be one of train, val"):
        demo_beton("test")


def write_idx(folder, num_images):
    """Write idx files in the original format: classes in turn, each image filled with its number."""
    labels = (np.arange(num_images) % 10).astype(np.uint8)
    images = np.repeat((np.arange(num_images) % 251).astype(np.uint8), 4).reshape(-1, 2, 2)
    for prefix in IDX_PREFIX.values():
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            with gzip.open(folder / f"{prefix}-{name}-ubyte.gz", "wb", compresslevel=1) as file:
                file.write(header + values.tobytes())
    return folder


def test_idx_files_become_class_folders_and_the_archive_and_missing_or_damaged_ones_are_rejected(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="install Debian's dataset-fashion-mnist"):
        write_folders(tmp_path / "images", idx_dir=tmp_path)
    with gzip.open(tmp_path / "x.gz", "wb") as file:
        file.write(b"\0\0\x08\x01\0\0\0\x09abc")
    with pytest.raises(ValueError, match="is not a valid idx file"):
        read_idx(tmp_path / "x.gz")
    idx_dir, dst = write_idx(tmp_path, 200), tmp_path / "images"
    write_folders(dst, idx_dir=idx_dir)
    for split in ("train", "val"):
        assert sorted(p.name for p in (dst / split).iterdir()) == sorted(CLASSES)
    assert len(list((dst / "train").rglob("*.png"))) == 200
    assert np.array(Image.open(dst / "val" / CLASSES[4] / "00014.png")).tolist() == [[14] * 2] * 2
    with pytest.raises(OSError, match="File exists"):
        write_folders(dst, idx_dir=idx_dir)
    # The archive is reproducible byte for byte, with a fixed choice of images.
    monkeypatch.setattr("benchmarks.fashion_mnist.PER_CLASS", {"train": 6, "val": 2})
    for name in ("one.zip", "two.zip"):
        write_archive(tmp_path / name, idx_dir=idx_dir)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        archive.extractall(tmp_path)
    info, stored, labels = read_beton(tmp_path / "train.beton")
    chosen = np.sort(keyed_rng(CHOICE_SEED, 0, 3).choice(np.arange(3, 200, 10), 6, replace=False))
    content = (tmp_path / "train.beton").read_bytes()
    assert [content[offset] for offset in stored["offset"][labels == 3]] == (chosen % 251).tolist()
    assert json.loads((tmp_path / "val.beton.json").read_text())["num_images"] == 20 and info.classes == CLASSES
