"""Rows of the doctor's table: which news is bad, and whose."""

from dataclasses import replace

import pytest
import torch

from tests.data.conftest import write_images
from vitkd_ds.commands.doctor import data, rows
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.recipes import build_run


def test_warnings_are_bad_news_too():
    good, bad = rows.ok("disk", "5 GiB"), rows.warning("disk", "slow", "see")
    assert rows.merged([[good], [bad]], ["a", "b"]) == [replace(bad, found="rank 1 on b: slow")]


@pytest.mark.parametrize("is_error, is_warning, level", [
    (True, True, "error"), (True, False, "error"), (False, True, "warning"), (False, False, "ok"),
])  # fmt: skip
def test_too_little_space_and_little_are_told_apart(is_error, is_warning, level):
    row = rows.graded("space", "5 GiB", "clear it", is_error=is_error, is_warning=is_warning)
    assert (row.level, row.advice) == (level, "" if level == "ok" else "clear it")


def test_changed_bytes_are_found_in_the_sample(tmp_path):
    path = pack(write_images(tmp_path / "images", 12), tmp_path / "x.beton", write_mode="raw", workers=1).path
    patient = rows.Patient(build_run("demo"), torch.device("cpu"), ["here"])
    assert data.bytes_row("data.train", path, patient).level == "ok"
    offset = int(read_beton(path)[1]["offset"][7])
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    row = data.bytes_row("data.train", path, patient)
    assert row.level == "error" and "found 1 of 12 read on here that have not: image 7 (class 'b')" in row.found
