"""Packing with bad files, damaged disks, kills and full disks: an error by name, nothing half-written, and a way on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_pack import content_of, one_class, stored
from vitkd_ds.data import journal, writer
from vitkd_ds.data import pack as pack_module
from vitkd_ds.data.fields import check_beton, labels_of, partial_path, side_path
from vitkd_ds.data.pack import pack

COMMAND = (sys.executable, "-c", "from vitkd_ds.cli import main; main()", "pack")
PNG_BYTES = 3 * 64 * 64


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


BAD = {
    "text.jpg": b"not an image",
    "empty.png": b"",
    "cut.png": None,
    "thin.png": Image.new("RGB", (2000, 1)),
}


def with_bad_files(tmp_path, names):
    good = {"good_a.png": Image.new("RGB", (8, 8), (1, 1, 1)), "good_z.png": Image.new("RGB", (8, 8))}
    src = one_class(tmp_path, good)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    for name in names:
        path, content = src / "only" / name, BAD[name]
        if content is None:
            content = (tmp_path / "whole.png").read_bytes()[:3000]
        path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    (tmp_path / "whole.png").unlink()
    return src


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_stops_the_job_by_name_and_leaves_nothing(tmp_path, name):
    src = with_bad_files(tmp_path, [name])
    with pytest.raises(ValueError, match=f"only/{name}"):
        pack(src, tmp_path / "x.beton", workers=1)
    assert names_in(tmp_path) == ["images"]


def test_bad_files_are_left_out_and_named_when_asked(tmp_path, caplog):
    src = with_bad_files(tmp_path, BAD)
    info = pack(src, tmp_path / "x.beton", write_mode="raw", workers=1, skip_bad=True)
    assert info.num_images == 2 and check_beton(info.path) == info and labels_of(info).tolist() == [0, 0]
    assert stored(info.path, 0)[0, 0, 0] == 1 and stored(info.path, 1)[0, 0, 0] == 0
    assert all(name in caplog.text for name in BAD)


def test_only_bad_files_are_an_error_even_when_skipped(tmp_path):
    src = with_bad_files(tmp_path, ["text.jpg"])
    for good in src.rglob("good*"):
        good.unlink()
    with pytest.raises(ValueError, match="at least one image must decode"):
        pack(src, tmp_path / "x.beton", workers=1, skip_bad=True)
    assert names_in(tmp_path) == ["images"]


def test_a_file_that_cannot_be_read_is_no_bad_image_but_an_error(tmp_path, monkeypatch):
    src = one_class(tmp_path, {"a.png": Image.new("RGB", (8, 8)), "b.png": Image.new("RGB", (8, 8))})
    begin = pack_module.open_journal

    def remove_one(*args, **options):
        (src / "only" / "b.png").unlink()
        return begin(*args, **options)

    monkeypatch.setattr(pack_module, "open_journal", remove_one)
    with pytest.raises(RuntimeError, match="only/b.png' cannot be read"):
        pack(src, tmp_path / "x.beton", workers=1, skip_bad=True)
    assert not (tmp_path / "x.beton").exists()


def test_an_existing_file_is_not_overwritten(tmp_path, make_folder):
    src = make_folder(tmp_path / "images", 2)
    (tmp_path / "x.beton").write_text("precious")
    with pytest.raises(ValueError, match="must not exist yet"):
        pack(src, tmp_path / "x.beton")
    assert (tmp_path / "x.beton").read_text() == "precious" and names_in(tmp_path) == ["images", "x.beton"]


def test_a_file_that_appears_while_packing_is_not_overwritten(tmp_path, make_folder, monkeypatch):
    src, dst = make_folder(tmp_path / "images", 2), tmp_path / "x.beton"
    check = pack_module.check_images
    monkeypatch.setattr(pack_module, "check_images", lambda *a, **k: (dst.write_text("precious"), check(*a, **k)))
    with pytest.raises(ValueError, match="appeared meanwhile"):
        pack(src, dst, workers=1)
    assert dst.read_text() == "precious" and not side_path(dst).exists()


@pytest.mark.parametrize("position, message", [(9, "its CRC-32 differs"), (None, "cannot be read whole")])
def test_damage_between_writing_and_reading_back_is_found_and_repaired(tmp_path, monkeypatch, position, message):
    src = one_class(tmp_path, {f"{i}.png": Image.new("RGB", (8, 8), (i, i, i)) for i in range(5)})
    dst, check = tmp_path / "x.beton", pack_module.check_images

    def damage(path, images, **options):
        content = bytearray(path.read_bytes())
        start = int(images["offset"][3])
        if position is None:
            content = content[: start + 50]
        else:
            content[start + position] ^= 16
        path.write_bytes(content)
        check(path, images, **options)

    monkeypatch.setattr(pack_module, "check_images", damage)
    with pytest.raises(ValueError, match=f"images/only/3.png' in .*{message}"):
        pack(src, dst, write_mode="raw", workers=1)
    assert not dst.exists() and not side_path(dst).exists()
    monkeypatch.undo()
    info = pack(src, dst, write_mode="raw", workers=1)
    assert [stored(dst, i)[0, 0, 0] for i in range(5)] == [0, 1, 2, 3, 4] and check_beton(dst) == info
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def test_a_worker_that_fails_names_the_reason(tmp_path, make_folder, monkeypatch):
    src = make_folder(tmp_path / "images", 2)
    monkeypatch.setattr(writer._Pages, "add", lambda self, number, image: 1 // 0)
    with pytest.raises(RuntimeError, match="a packing worker failed: (.|\n)*ZeroDivisionError"):
        pack(src, tmp_path / "x.beton", workers=2)
    assert names_in(tmp_path) == ["images"]


def with_late_image(tmp_path, num_images=200):
    """A folder whose last image is a pipe: reading it blocks until somebody writes to it."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    src = one_class(tmp_path, {f"{i:03d}.png": Image.fromarray(np.roll(noise, i)) for i in range(num_images)})
    os.mkfifo(src / "only" / "zzz.png")
    return src


def feed(src):
    """Write the late image, as soon as somebody reads it."""
    content = (src / "only" / "000.png").read_bytes()
    thread = threading.Thread(target=lambda: (src / "only" / "zzz.png").write_bytes(content), daemon=True)
    thread.start()
    return thread


def wait_until(is_true, what):
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def start_and_wait_for_a_journal(src, dst, *options):
    """Start packing and wait until some images are on the disk; returns the process and its workers' ids."""
    process = subprocess.Popen(
        [*COMMAND, str(src), str(dst), "--write_mode", "raw", "--workers", "2", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    notes = Path(f"{partial_path(dst)}.journal")
    wait_until(lambda: notes.exists() and notes.stat().st_size > 2000, "the journal")
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, workers


def ends(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_job_that_is_ended_continues_where_it_was(tmp_path, caplog, end):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start_and_wait_for_a_journal(src, dst)
    process.send_signal(end)
    stderr = process.communicate(timeout=10)[1]
    assert len(workers) >= 2
    wait_until(lambda: all(map(ends, workers)), "the end of the workers")
    if end == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 1 and "stopped before" in stderr and "the same command continues" in stderr
        assert "Traceback" not in stderr
    assert not dst.exists() and not side_path(dst).exists()
    with pytest.raises(ValueError, match="--restart to start over") as refused:
        pack(src, dst, write_mode="raw", quality=80, shuffle=True, workers=2)
    assert "quality 80, shuffle True where it has quality 90, shuffle False" in str(refused.value)
    feed(src)
    info = pack(src, dst, write_mode="raw", workers=2)
    assert "continuing" in caplog.text and check_beton(dst) == info and info.num_images == 201
    expected = [np.array(Image.open(path)).tobytes() for path in sorted((src / "only").glob("[0-9]*.png"))]
    assert content_of(dst) == [*expected, expected[0]]
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def test_what_an_ended_job_left_is_checked_and_can_be_thrown_away(tmp_path, caplog):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, _ = start_and_wait_for_a_journal(src, dst)
    process.kill()
    process.communicate()
    partial = partial_path(dst)
    content = bytearray(partial.read_bytes())
    for start in range(8 * 2**20, len(content), 5 * PNG_BYTES):
        content[start] ^= 1
    partial.write_bytes(content)
    notes = Path(f"{partial}.journal")
    notes.write_bytes(notes.read_bytes() + b"\x05\0\0\0 torn")
    feed(src)
    info = pack(src, dst, write_mode="raw", workers=1)
    assert "are damaged and are packed again" in caplog.text
    expected = [np.array(Image.open(path)).tobytes() for path in sorted((src / "only").glob("[0-9]*.png"))]
    assert content_of(info.path)[:200] == expected
    other = tmp_path / "y.beton"
    process, _ = start_and_wait_for_a_journal(src, other)
    process.kill()
    process.communicate()
    feed(src)
    assert pack(src, other, write_mode="raw", quality=80, workers=2, restart=True).quality == 80


def test_two_jobs_do_not_write_one_file(tmp_path, monkeypatch):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start_and_wait_for_a_journal(src, dst)
    monkeypatch.setattr(journal, "LOCK_PATIENCE_S", 0.2)
    for restart in (False, True):
        with pytest.raises(ValueError, match="only one job may write .*x.beton', found another at work"):
            pack(src, dst, write_mode="raw", restart=restart)
    with pytest.raises(ValueError, match="still being packed"):
        check_beton(dst)
    feed(src)
    process.communicate(timeout=20)
    assert process.returncode == 0 and check_beton(dst).num_images == 201


def test_a_killed_worker_is_noticed_at_once(tmp_path):
    src, dst = with_late_image(tmp_path), tmp_path / "x.beton"
    process, workers = start_and_wait_for_a_journal(src, dst)
    blocked = [pid for pid in workers if not ends(pid)]
    os.kill(int(blocked[-1]), signal.SIGKILL)
    stderr = process.communicate(timeout=5)[1]
    assert process.returncode == 1 and "exit code -9" in stderr and "are kept" in stderr and not dst.exists()


def limited(src, dst, limit):
    """Pack in a shell whose files may have `limit` KiB."""
    words = " ".join(f"'{word}'" for word in (*COMMAND, src, dst, "--write_mode", "raw", "--workers", "2"))
    return subprocess.run(["bash", "-c", f"ulimit -f {limit}; {words}"], capture_output=True, text=True, timeout=60)


def test_a_file_that_may_not_grow_is_a_clear_error(tmp_path, make_folder):
    src, dst = make_folder(tmp_path / "images", 40), tmp_path / "x.beton"
    done = limited(src, dst, 8200)
    assert done.returncode == 1 and "images cannot be written, found [Errno 27] File too large" in done.stderr
    assert not dst.exists() and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_is_a_clear_error_and_more_room_helps(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    src = one_class(tmp_path, {f"{i:03d}.png": Image.fromarray(np.roll(noise, i)) for i in range(80)})
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(RuntimeError, match="No space left on device"):
            pack(src, disk / "x.beton", write_mode="raw", workers=1)
        assert not (disk / "x.beton").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        info = pack(src, disk / "x.beton", write_mode="raw", workers=1)
        assert content_of(info.path) == [np.roll(noise, i).tobytes() for i in range(80)]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_unfit_arguments_are_refused(tmp_path, make_folder):
    src, dst = make_folder(tmp_path / "images", 2), tmp_path / "x.beton"
    for args, options, message in [
        ((src, tmp_path / "x.bin"), {}, "must end in .beton"),
        ((src, tmp_path / "no" / "x.beton"), {}, "folder of dst must exist"),
        ((src, dst), {"write_mode": "smart"}, "one of jpg, raw, proportion"),
        ((src, dst), {"quality": 0}, "quality must be"),
        ((src, dst), {"max_resolution": 70000}, "max_resolution must be"),
        ((src, dst), {"short_side": -1}, "short_side must be"),
        ((src, dst), {"short_side": 5, "max_resolution": 5}, "max_resolution or short_side, found both"),
        ((src, dst), {"passthrough": True, "write_mode": "raw"}, "passthrough stores JPEGs"),
        ((src, dst), {"workers": -1}, "workers must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            pack(*args, **options)
    assert names_in(tmp_path) == ["images"]
