"""Packing runs that are killed or meet another run: no partial output, no leftover process, and a way to continue."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands.pack.test_pack import COMMAND, content_of, names_in, noise, one_class
from tests.conftest import wait_until
from tests.tiers import costly
from vitkd_ds.commands.pack import images as pack_module
from vitkd_ds.commands.pack import pack, parts
from vitkd_ds.data.beton.format import check_beton, partial_path
from vitkd_ds.data.beton.side_file import side_path

# The signal that the kernel sends to a lease's holder when another process opens the file.
signal.signal(signal.SIGIO, signal.SIG_IGN)
HELD = {}


def with_late_image(tmp_path):
    """A folder with a late image: it cannot be opened before `feed`, because the kernel waits for our lease on it."""
    src = one_class(tmp_path, noise(200, 64, 64))
    shutil.copy(src / "only" / "000.png", src / "only" / "zzz.png")
    return hold(src)


def hold(src):
    """Make the last image late again."""
    HELD[src] = os.open(src / "only" / "zzz.png", os.O_RDWR)
    fcntl.fcntl(HELD[src], fcntl.F_SETLEASE, fcntl.F_WRLCK)
    return src


def feed(src):
    """Let everyone read the late image, including the processes that are waiting for it."""
    os.close(HELD.pop(src))


def finished(dst):
    """The lists of the finished parts."""
    return sorted(partial_path(dst).glob("[0-9]*.json"))


@pytest.fixture
def start():
    """A function that starts packing and waits until only the late image's part is unfinished; returns the run and its
    workers."""
    started = []

    def start_and_wait(src, dst):
        words = [*COMMAND, str(src), str(dst), "--write_mode", "raw", "--workers", "2"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(process)
        wait_until(lambda: len(finished(dst)) == 3, started[-1:])
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
    """End a run and its workers (one may wait for the late image); return the run's output."""
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    wait_until(lambda: all(map(has_ended, workers)), [])
    return said


@pytest.mark.parametrize("number", [signal.SIGKILL, *costly([signal.SIGTERM, signal.SIGINT])])
def test_a_stopped_run_continues_from_its_finished_parts(tmp_path, caplog, start, number):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start(src, dst)
    said = end(process, workers, number)
    assert len(workers) >= 2 and process.returncode == (-9 if number == signal.SIGKILL else 1)
    if number != signal.SIGKILL:
        assert "stopped before" in said and "Rerun the same command to continue" in said and "Traceback" not in said
    assert not dst.exists() and not side_path(dst).exists()
    feed(src)
    info = pack(src, dst, write_mode="raw", workers=2)
    assert "continuing" in caplog.text and check_beton(dst) == info and info.num_images == 201
    expected = [pixels.tobytes() for pixels in noise(200, 64, 64)]
    assert content_of(dst) == [*expected, expected[0]]
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """Source and .beton of a run that ended with some parts finished, either already merged into the file or not."""

    def interrupt(*, is_moved):
        src, dst = one_class(tmp_path, noise(2 * parts.PART + 2, 8, 8)), tmp_path / "x.beton"
        fail = (pack_module, "damaged_images") if is_moved else (parts.Unfinished, "move")
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(*fail, lambda *args, **options: 1 // 0)
            pack(src, dst, write_mode="raw", workers=1)
        assert (partial_path(dst) / "000000.images").exists() != is_moved
        return src, dst

    return interrupt


def check_continues(src, dst, *, tries=1):
    """Pack to the end, retrying after errors that ask for it; compare with a fresh pack."""
    for _ in range(tries - 1):
        with pytest.raises(ValueError, match="rerun the same command, which packs"):
            pack(src, dst, write_mode="raw", workers=2)
    pack(src, dst, write_mode="raw", workers=2)
    assert dst.read_bytes() == pack(src, dst.with_name("y.beton"), write_mode="raw", workers=1).path.read_bytes()


@pytest.mark.parametrize("is_moved", [True, False])
@pytest.mark.parametrize("is_cut", [True, False])
def test_damaged_images_of_a_stopped_run_are_detected_and_packed_again(interrupted, is_moved, is_cut):
    src, dst = interrupted(is_moved=is_moved)
    path = partial_path(dst) / ("images" if is_moved else "000000.images")
    content = bytearray(path.read_bytes())
    at = 8 * 2**20 * is_moved + 5 * 3 * 8 * 8
    content[at] ^= 1
    path.write_bytes(content[:at] if is_cut else content)
    check_continues(src, dst, tries=1 if is_cut and not is_moved else 2)


FORGED = [
    *[(0, value) for value in (0, 2**32 - 1, 2**40, -1, None, "many")],
    *[(2, value) for value in (65535, 2**16)],
    *[(4, value) for value in (2, 256)],
]


@pytest.mark.parametrize("column, value", FORGED)
def test_a_forged_part_is_packed_again(interrupted, column, value):
    src, dst = interrupted(is_moved=True)
    rows = json.loads(finished(dst)[1].read_text())
    rows[2][column] = value
    finished(dst)[1].write_text(json.dumps(rows))
    check_continues(src, dst, tries=2 if value in (0, 65535, 2) else 1)  # which shows when it is read back


@pytest.mark.parametrize("text", [None, "", "[[5, 1", "{}", "[1]", "[]", "[" * 100_000])
def test_a_part_with_a_missing_or_damaged_list_and_all_data_after_it_are_packed_again(interrupted, text):
    src, dst = interrupted(is_moved=True)
    finished(dst)[0].unlink() if text is None else finished(dst)[0].write_text(text)
    check_continues(src, dst)


def test_other_or_damaged_settings_are_rejected_and_existing_parts_can_be_discarded(interrupted):
    src, dst = interrupted(is_moved=True)
    with pytest.raises(ValueError, match="quality 90, but now quality 80.* or start over: rm -rf"):
        pack(src, dst, write_mode="raw", quality=80)
    for text in ("damaged", "[" * 100_000, "[1]"):
        (partial_path(dst) / "settings.json").write_text(text)
        with pytest.raises(ValueError, match="settings.json', left by .* pack, is not valid.*Start over: rm -rf"):
            pack(src, dst, write_mode="raw")
    assert pack(src, dst, write_mode="raw", quality=80, restart=True).quality == 80
    assert names_in(dst.parent) == ["images", "x.beton", "x.beton.json"]


def test_an_earlier_versions_parts_are_rejected_with_the_command_that_removes_them(tmp_path):
    src, dst = one_class(tmp_path, noise(3, 8, 8)), tmp_path / "x.beton"
    for name in (partial_path(dst), Path(f"{partial_path(dst)}.journal")):
        name.write_bytes(b"{}")
    with pytest.raises(ValueError, match="of an earlier version and cannot be continued. Remove it: rm ") as refusal:
        pack(src, dst)
    subprocess.run(["bash", "-c", str(refusal.value).partition("Remove it: ")[2]], check=True)
    assert pack(src, dst).num_images == 3
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def test_packing_needs_little_more_space_than_the_file(tmp_path, monkeypatch):
    src, dst, used = one_class(tmp_path, noise(6 * parts.PART, 64, 64)), tmp_path / "x.beton", []
    monkeypatch.setattr(parts, "SYNC_S", 0)
    move = parts.Unfinished.move

    def watched(self, number, part):
        move(self, number, part)
        content = [path for path in partial_path(dst).glob("*.images") if int(path.stem) <= number]
        used.append(len(content))

    monkeypatch.setattr(parts.Unfinished, "move", watched)
    pack(src, dst, write_mode="raw", workers=1)
    assert used == [0] * 6


def test_two_runs_cannot_write_the_same_file(tmp_path, monkeypatch, start):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, _ = start(src, dst)
    monkeypatch.setattr(parts, "LOCK_PATIENCE_S", 0.2)
    for restart in (False, True):
        with pytest.raises(ValueError, match="another process is packing into .*x.beton'"):
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
    assert process.returncode == 1 and "-9" in said and "kept " in said and not dst.exists()
