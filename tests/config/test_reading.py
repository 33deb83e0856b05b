"""Files on a failing disk: reads are retried, and read errors are never reported as damage."""

import json
import os

import pytest

from tests.checkpoint.test_load import make
from tests.data.conftest import write_beton
from tests.faults import run_on_a_failing_disk
from vitkd_ds.config import reading
from vitkd_ds.config.reading import Unreadable, load_json, patiently


def test_a_missing_file_is_reported_at_once_and_endless_brackets_are_not_json(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WAITS_S", (3600,))  # a single retry would exceed the test's limit
    for path, error in ((tmp_path / "none", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error):
            load_json(path)
    (tmp_path / "deep").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        load_json(tmp_path / "deep")


def test_a_briefly_unreadable_file_is_read_and_a_lasting_failure_is_a_distinct_error(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WAITS_S", (0.01, 0.02))
    path = tmp_path / "x"
    path.symlink_to("/proc/self/mem")  # the kernel's EIO
    with pytest.raises(Unreadable, match=r"x cannot be read \(3 attempts in 0 s\): \[Errno 5\] .*. Check its disk"):
        load_json(path)
    attempts = []

    def read(path):
        attempts.append(1)
        if len(attempts) == 2:
            path.unlink()
            path.write_text("[1]")
        return path.read_bytes()

    assert patiently(read)(path) == b"[1]" and len(attempts) == 2


CHECKPOINTS = """
from vitkd_ds.checkpoint.load import find, newest_whole
from vitkd_ds.config.reading import Unreadable
workdir = Path(sys.argv[1])
for name in ("step00000002/manifest.json", "step00000002/a", "step00000002/zero", "checkpoints/latest"):
    for times in (1, 2, 3):
        fail(name, times)
        try:
            print(newest_whole(find("auto", workdir)).tag[-1], library.left())
        except Unreadable as error:
            print(type(error).__name__, library.left())
        fail(name, 0)
"""


def test_an_unreadable_checkpoint_is_not_skipped_for_an_older_one(tmp_path):
    make(tmp_path, 1, 2)
    said = run_on_a_failing_disk(tmp_path, CHECKPOINTS, tmp_path).splitlines()
    assert said == ["2 0", "2 0", "Unreadable 0"] * 4


WEIGHTS = """
import timm
from vitkd_ds.config.reading import Unreadable
from vitkd_ds.config.run import DataConfig, TeacherConfig
from vitkd_ds.models import create, hub
from vitkd_ds.models.weights import files_of_index
index = Path(sys.argv[1])
for times in (2, 3):
    fail(index.name, times)
    try:
        print(len(files_of_index(index)))
    except Unreadable as error:
        print("Unreadable", library.left())
def unreadable(*args, **named):
    raise OSError(116, "Stale file handle")
default = create.default_model("deit3_small_patch16_224", role="teacher")
create.default_model = lambda *_, **__: default
DATA = DataConfig("", "", image_size=224, num_classes=1000)
hub.get_hf_file_metadata = lambda *_, **__: None
hub.hf_hub_download = timm.create_model = unreadable
for read in (lambda: hub.hub_file("deit3_small_patch16_224"),
             lambda: create.create(TeacherConfig("deit3_small_patch16_224"), DATA, role="teacher", pretrained=True)):
    try:
        read()
    except Unreadable as error:
        print(error)
"""


def test_unreadable_weights_are_not_reported_as_invalid(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}))
    said = run_on_a_failing_disk(tmp_path, WEIGHTS, index).splitlines()
    assert said[:2] == ["2", "Unreadable 0"]
    assert "the cached weights of deit3_small_patch16_224 cannot be read: [Errno 116] Stale" in said[2]
    assert "the weights of deit3_small_patch16_224 cannot be read" in said[3] and len(said) == 4


IMAGES = """
import logging
import numpy as np
from vitkd_ds.config.reading import Unreadable
from vitkd_ds.config.run import DataConfig
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.data.loader import build_loader
path = sys.argv[1]
for name in ("x.beton", "x.beton.json"):
    for times in (1, 2, 3):
        fail(name, times)
        try:
            print("opened", len(read_beton(path)[1]), library.left())
        except Unreadable:
            print("unreadable", library.left())
for backend in ("ffcv", "torchvision"):
    data = DataConfig(train=path, val=path, num_classes=2, image_size=16, backend=backend, num_workers=1)
    loader = build_loader(data, split="val", micro_batch_size=4)
    (whole, _), *_ = loader.epoch(0)
    for times in (2, 10**6):
        loader = build_loader(data, split="val", micro_batch_size=4)
        fail("x.beton", times)
        try:
            (found, _), *_ = loader.epoch(0)
            print(backend, (found == whole).all().item())
        except Unreadable as error:
            print(backend, str(error).replace(path, "x"))
        fail("x.beton", 0)
"""


def test_reads_of_images_and_tables_are_retried_and_a_lost_disk_is_not_damage(tmp_path):
    path = write_beton(tmp_path, 8)
    said = run_on_a_failing_disk(tmp_path, IMAGES, path).splitlines()
    assert said[:6] == ["opened 8 0", "opened 8 0", "unreadable 0"] * 2
    failed = "the disk failed to read images 0, 1, 2, 3 of 'x', even after 2 retries. Check the disk, then"
    assert said[6:] == [
        line for backend in ("ffcv", "torchvision")
        for line in (f"{backend} True", f"{backend} {failed} rerun the same command to resume.")
    ]  # fmt: skip


TRAIN = """
sys.argv = ["train.py", *sys.argv[2:]]
from vitkd_ds.cli import train_main
fail("x.beton.json", 10**6)
try:
    train_main()
except SystemExit as ended:
    print("code", ended.code)
"""


def test_a_start_that_cannot_read_its_images_ends_with_code_1_and_a_clear_error(tmp_path):
    path = write_beton(tmp_path, 8)
    options = (f"--data.train={path}", f"--data.val={path}", "--data.num_classes=0", f"--workdir={tmp_path}/run")
    assert run_on_a_failing_disk(tmp_path, TRAIN, "", "--recipe=demo_plain", "--debug", *options) == "code 1\n"
    assert not os.path.exists(tmp_path / "run")
