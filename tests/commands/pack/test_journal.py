"""Runs that are killed or meet another run: nothing half-written, no process left behind, and a way on."""

import fcntl
import os
import shutil
import signal
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.commands.pack.test_pack import COMMAND, content_of, names_in, noise, one_class
from tests.conftest import wait_until
from tests.data.conftest import write_images
from tests.tiers import costly
from vitkd_ds.commands.pack import images as pack_module
from vitkd_ds.commands.pack import journal, pack
from vitkd_ds.data.beton.format import check_beton, partial_path
from vitkd_ds.data.beton.side_file import side_path

# What the kernel sends to the holder of a lease when another process opens the file.
signal.signal(signal.SIGIO, signal.SIG_IGN)
HELD = {}


def with_late_image(tmp_path):
    """A folder whose last image cannot be opened before `feed`, as the system waits for our lease on it to end."""
    src = one_class(tmp_path, noise(200, 64, 64))
    shutil.copy(src / "only" / "000.png", src / "only" / "zzz.png")
    return hold(src)


def hold(src):
    """Make the last image late again."""
    HELD[src] = os.open(src / "only" / "zzz.png", os.O_RDWR)
    fcntl.fcntl(HELD[src], fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return src


def feed(src):
    """Let the late image be read, by those who wait for it too."""
    os.close(HELD.pop(src))


@pytest.fixture
def start():
    """A function that starts packing and waits until images are on the disk; gives the process and its workers."""
    started = []

    def start_and_wait(src, dst):
        words = [*COMMAND, str(src), str(dst), "--write_mode", "raw", "--workers", "2"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        notes = Path(f"{partial_path(dst)}.journal")
        wait_until(lambda: notes.exists() and notes.stat().st_size > 2000, started[-1:])
        return process, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    yield start_and_wait
    for process in started:
        process.kill()
        process.communicate()


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def end(process, workers, number=signal.SIGKILL):
    """End a run, and wait for its workers, one of which may wait for the late image; returns what it said."""
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    wait_until(lambda: all(map(has_ended, workers)), [])
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, *costly([signal.SIGTERM, signal.SIGINT])])
def test_a_run_that_is_ended_continues_where_it_was(tmp_path, caplog, start, number):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start(src, dst)
    said = end(process, workers, number)
    assert len(workers) >= 2 and process.returncode == (-9 if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        assert "stopped before" in said and "the same command continues" in said and "Traceback" not in said
    assert not dst.exists() and not side_path(dst).exists()
    with pytest.raises(ValueError, match="--restart to start over") as refused:
        pack(src, dst, write_mode="raw", quality=80, shuffle=True, workers=2)
    assert "quality 80, shuffle True where it has quality 90, shuffle False" in str(refused.value)
    feed(src)
    info = pack(src, dst, write_mode="raw", workers=2)
    assert "continuing" in caplog.text and check_beton(dst) == info and info.num_images == 201
    expected = [pixels.tobytes() for pixels in noise(200, 64, 64)]
    assert content_of(dst) == [*expected, expected[0]]
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def test_what_an_ended_run_left_is_checked_and_can_be_thrown_away(tmp_path, caplog, start):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    end(*start(src, dst))
    partial = partial_path(dst)
    content = bytearray(partial.read_bytes())
    for position in range(8 * 2**20, len(content), 5 * 3 * 64 * 64):  # in every fifth image
        content[position] ^= 1
    partial.write_bytes(content)
    notes = Path(f"{partial}.journal")
    notes.write_bytes(notes.read_bytes() + b"\x05\0\0\0 torn")
    feed(src)
    info = pack(src, dst, write_mode="raw", workers=1)
    assert "are damaged and are packed again" in caplog.text
    assert content_of(info.path)[:200] == [pixels.tobytes() for pixels in noise(200, 64, 64)]
    other = tmp_path / "y.beton"
    end(*start(hold(src), other))
    for line in (b"damaged", b"[" * 100_000):
        Path(f"{partial_path(other)}.journal").write_bytes(line + b"\n")
        with pytest.raises(ValueError, match="must begin with a line of JSON.*--restart to start over"):
            pack(src, other, write_mode="raw", quality=80, workers=2)
    feed(src)
    assert pack(src, other, write_mode="raw", quality=80, workers=2, restart=True).quality == 80


FORGED = {
    "number": [4, 2**64 - 1], "offset": [2**40, 2**63, 2**64 - 1, 0], "size": [0, 2**32 - 1], "height": [65535],
    "mode": [2],
}  # fmt: skip


@pytest.mark.parametrize("field, value", [(field, value) for field in FORGED for value in FORGED[field]])
def test_a_forged_journal_ends_in_an_error_or_in_the_right_images(tmp_path, monkeypatch, field, value):
    src, dst = write_images(tmp_path / "images", 4), tmp_path / "x.beton"
    monkeypatch.setattr(pack_module, "check_images", lambda *args, **options: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        pack(src, dst, workers=1)
    monkeypatch.undo()
    notes = Path(f"{partial_path(dst)}.journal")
    head, _, block = notes.read_bytes().partition(b"\n")
    records = np.frombuffer(block[8:], journal.RECORD_DTYPE).copy()
    records[field][2] = value
    sum_of_records = zlib.crc32(records.tobytes()).to_bytes(4, "little")
    notes.write_bytes(head + b"\n" + block[:4] + sum_of_records + records.tobytes())
    try:
        info = pack(src, dst, workers=1)
    except ValueError as error:
        assert "x.beton.partial" in str(error)
        info = pack(src, dst, workers=1, restart=True)
    assert content_of(info.path) == content_of(pack(src, tmp_path / "y.beton", workers=1).path)
    assert dst.stat().st_size < 2**30


def test_two_runs_do_not_write_one_file(tmp_path, monkeypatch, start):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, _ = start(src, dst)
    monkeypatch.setattr(journal, "LOCK_PATIENCE_S", 0.2)
    for restart in (False, True):
        with pytest.raises(ValueError, match="only one run may pack into .*x.beton', found another at work"):
            pack(src, dst, write_mode="raw", restart=restart)
    with pytest.raises(ValueError, match="still being packed"):
        check_beton(dst)
    feed(src)
    process.communicate(timeout=60)
    assert process.returncode == 0 and check_beton(dst).num_images == 201


def test_a_killed_worker_is_noticed_at_once(tmp_path, start):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start(src, dst)
    os.kill(int([pid for pid in workers if not has_ended(pid)][-1]), signal.SIGKILL)
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 1 and "exit code -9" in said and "are kept" in said and not dst.exists()
