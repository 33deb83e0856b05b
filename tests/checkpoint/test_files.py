"""Files are written whole or not at all."""

import hashlib
import os
from unittest.mock import Mock

import pytest
import torch

from vitkd_ds.checkpoint.files import write_text, write_whole


def test_a_file_is_replaced_at_once_and_described(tmp_path):
    path = tmp_path / "latest"
    write_text(path, "old")
    entry = write_text(path, "new\u00e9")
    assert path.read_text(encoding="utf-8") == "new\u00e9" and os.listdir(tmp_path) == ["latest"]
    assert entry == {"bytes": 5, "blake2b": hashlib.blake2b("new\u00e9".encode(), digest_size=32).hexdigest()}


def test_a_file_at_the_temporary_name_is_removed_and_a_link_there_is_not_followed(tmp_path):
    path, other = tmp_path / "latest", tmp_path / "other"
    other.write_text("mine")
    temporary = tmp_path / ".latest.tmp"
    temporary.write_text("left by a kill")
    write_text(path, "1")
    temporary.symlink_to(other)
    write_text(path, "2")
    assert other.read_text() == "mine" and not path.is_symlink() and path.read_text() == "2"


def test_bytes_are_on_the_disk_before_the_name_appears(tmp_path, disk_calls):
    write_text(tmp_path / "latest", "new\u00e9")
    assert disk_calls == [("fsync", ".latest.tmp", 5), ("replace", "latest")]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "latest", "old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_whole(tmp_path / "latest", fail)
    assert (tmp_path / "latest").read_text() == "old" and os.listdir(tmp_path) == ["latest"]


def test_a_failed_write_is_raised_at_the_end_and_not_inside_the_writer(tmp_path):
    def fill(file):
        file.file = Mock(spec=["write"], **{"write.side_effect": OSError(28, "No space left on device")})
        assert file.write(b"abc") == 3, "torch's C++ writer must not see an exception"
        torch.save({"x": torch.zeros(100_000)}, file)

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "state", fill)
    assert not (tmp_path / "state").exists()
