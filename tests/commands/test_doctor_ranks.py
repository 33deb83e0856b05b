"""`vitkd-ds doctor` on ranks that differ in packages, files or disks."""

import shutil
from dataclasses import replace

import torch

from tests.commands.test_doctor import assert_found, two_disks  # noqa: F401
from tests.data.conftest import write_beton
from tests.threaded import on_ranks
from vitkd_ds.commands.doctor import attempted, data, machine, rows
from vitkd_ds.engine import ranks
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import split_batch

NODES = ["node0", "node1"]


def patient_of(**changes):
    run = replace(build_run("demo"), global_batch_size=48, micro_batch_size_per_gpu=8)
    run = replace(run, data=replace(run.data, num_workers=1, **changes))
    split = split_batch(48, world_size=2, limit=8)
    return rows.Patient(run, torch.device("cpu"), NODES, split=split, images_per_s=1e9 * ranks.rank())


def rows_on_ranks(check):
    """One check's rows of all ranks, by name."""
    return on_ranks(2, lambda rank: {row.name: row for row in check(rank)})


def test_a_different_package_on_one_rank_is_detected_on_all(monkeypatch):
    monkeypatch.setattr(machine.platform, "python_version", lambda: f"3.1{ranks.rank()}.0")
    for found in rows_on_ranks(lambda rank: machine.check_versions(patient_of())):
        assert found["versions"].level == "error"
        assert_found(found["versions"].found, "python differs between ranks: 3.10.0 on node0 and 3.11.0")


def test_a_different_file_on_one_rank_is_detected_on_all(tmp_path):
    paths = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        paths.append(str(write_beton(tmp_path / str(rank), 60 + 2 * rank, write_mode="raw")))

    def check(rank):
        own = {"train": paths[rank], "val": paths[rank], "num_classes": 2, "image_size": 16}
        return data.check_images(patient_of(**own), "val")

    found = on_ranks(2, lambda rank: [row for row in check(rank) if row.level == "error"])
    assert all("differs between nodes: fingerprint" in of_rank[0].found for of_rank in found)


def test_changed_bytes_on_one_nodes_disk_are_an_error_there(two_disks, small_beton):  # noqa: F811
    def check(rank):
        own = {"train": str(two_disks / str(rank) / "val.beton"), "val": str(small_beton)}
        return attempted("data.train", lambda patient: data.check_images(patient, "train"), patient_of(**own))

    good, bad = rows_on_ranks(check)
    assert good["data.train"].level == "ok" and bad["data.train"].level == "error"
    assert_found(bad["data.train"].found, "has changed since it was packed")
    shutil.copy(two_disks / "0" / "val.beton", two_disks / "1" / "val.beton")
    for found in rows_on_ranks(check):
        assert found["data.train"].level == "ok"
        assert_found(found["data.train decoding"].found, "but a GPU trains on 1,000,000,000")
