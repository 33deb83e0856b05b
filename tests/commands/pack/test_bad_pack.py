"""Packing with bad files, damaged disks and full disks: an error that names the file, and no partial output."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.pack.test_folders import run_of
from tests.commands.pack.test_pack import COMMAND, content_of, names_in, noise, one_class, stored
from tests.data.conftest import write_images
from tests.data.test_image_file import file_of, photograph, zeroed
from vitkd_ds import cli
from vitkd_ds.commands.pack import images as pack_module
from vitkd_ds.commands.pack import pack, parts, writer
from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.data.beton.format import check_beton, read_beton
from vitkd_ds.data.beton.side_file import side_path

GOOD = {"good_a.png": Image.new("RGB", (8, 8), (1, 1, 1)), "good_z.png": Image.new("RGB", (8, 8))}
CUT = file_of(Image.fromarray(noise(1, 50, 50)[0]), "PNG")[:3000]
BAD = {"text.jpg": b"not an image", "empty.png": b"", "cut.png": CUT, "thin.png": Image.new("RGB", (2000, 1))}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_stops_packing_by_name_and_if_no_other_exists_even_with_skip_bad(tmp_path, name):
    src = one_class(tmp_path, GOOD | {name: BAD[name]})
    with pytest.raises(ValueError, match=f"only/{name}"):
        pack(src, tmp_path / "x.beton", workers=1)
    for good in GOOD:
        (src / "only" / good).unlink()
    with pytest.raises(ValueError, match="none of"):
        pack(src, tmp_path / "x.beton", workers=1, skip_bad=True)
    assert names_in(tmp_path) == ["images"]


def test_bad_files_are_skipped_and_named_on_request(tmp_path, caplog):
    info = pack(one_class(tmp_path, GOOD | BAD), tmp_path / "x.beton", write_mode="raw", workers=1, skip_bad=True)
    assert info.num_images == 2 and check_beton(info.path) == info and read_beton(info.path)[2].tolist() == [0, 0]
    assert stored(info.path, 0)[0, 0, 0] == 1 and stored(info.path, 1)[0, 0, 0] == 0
    assert all(name in caplog.text for name in BAD)


def test_an_error_names_the_kept_parts_and_skip_bad_continues_with_them(tmp_path, caplog):
    images = noise(parts.PART + 8, 16, 16)
    src, dst = one_class(tmp_path, images), tmp_path / "x.beton"
    (src / "only" / "zz.jpg").write_bytes(zeroed(photograph()))
    with pytest.raises(ValueError, match="only/zz.jpg' does not .*damaged JPEG.* Pass --skip_bad to vitkd-ds pack"):
        pack(src, dst, write_mode="raw", workers=1)
    partial = f".{dst.name}.partial"
    assert names_in(tmp_path) == [partial, "images"]
    assert "kept 1 finished parts of up to 64 images (0.00 GB) in" in caplog.text
    assert caplog.text.rstrip().endswith(f"rm -rf {tmp_path / partial}")
    caplog.clear()
    info = pack(src, dst, write_mode="raw", workers=1, skip_bad=True)
    assert "which has 1 finished parts" in caplog.text and "skipped '" in caplog.text
    assert info.num_images == len(images) and names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def run_printed(monkeypatch, error, beginning):
    """Run the vitkd-ds command in the line of an error message that starts with `beginning`."""
    command = next(line for line in str(error).splitlines() if line.startswith(beginning)).removeprefix(beginning)
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    cli.main()


def test_the_command_in_the_error_of_a_damaged_file_packs_the_others_with_the_same_options(tmp_path, monkeypatch):
    src, dst = one_class(tmp_path / "a b", GOOD | {"bad.png": b""}), tmp_path / "x.beton"
    options = {"write_mode": "raw", "shuffle": "true", "workers": "1", "skip_bad": "false"}
    with pytest.raises(ValueError, match="bad.png' does not decode") as error:
        cli.pack(str(src), str(dst), **options)
    run_printed(monkeypatch, error.value, "The command that skips such files: ")
    info = check_beton(dst)
    assert (info.num_images, info.write_mode, info.shuffled) == (2, "raw", True)


def test_after_a_damaged_file_in_train_or_val_the_commands_in_the_errors_lead_to_a_packed_run(tmp_path, monkeypatch):
    train, val = (write_images(tmp_path / name, 8, ending="jpg") for name in ("train", "val"))
    for folder in (train, val):
        (folder / "a" / "000.jpg").write_bytes(b"")
        with pytest.raises(ValueError, match="000.jpg' does not decode") as error:
            pack_folders(run_of(train, val, num_classes=2))
        run_printed(monkeypatch, error.value, "The command that skips such files: ")
    data = pack_folders(run_of(train, val, num_classes=2)).data
    assert [check_beton(path).num_images for path in (data.train, data.val)] == [7, 7]
    assert (check_beton(data.train).passthrough, check_beton(data.val).passthrough) == (0, 7)


def test_without_skip_bad_a_bad_image_is_retried(tmp_path, monkeypatch):
    src, dst = one_class(tmp_path, GOOD | {"bad.png": bytes(100)}), tmp_path / "x.beton"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(pack_module, "damaged_images", lambda *args, **options: 1 // 0)
        pack(src, dst, workers=1, skip_bad=True)
    bad = src / "only" / "bad.png"
    bad.write_bytes(file_of(GOOD["good_a.png"], "PNG").ljust(100, b"\0")[:100])
    assert len(bad.read_bytes()) == 100 and pack(src, dst, workers=1).num_images == 3


def test_originals_not_stored_unchanged_are_counted_with_the_reason(tmp_path, caplog):
    files = {"a.jpg": photograph(), "b.png": Image.new("RGB", (8, 8)), "c.jpg": Image.new("CMYK", (8, 8))}
    files["d.jpg"] = photograph() + bytes(8 * 2**20)
    src = one_class(tmp_path, files)
    info = pack(src, tmp_path / "x.beton", passthrough=True, shuffle=True, workers=1)
    assert (info.num_images, info.passthrough) == (4, 1)
    no_jpegs, too_large = [record.message for record in caplog.records]
    assert no_jpegs.startswith("2 images are not RGB or grey JPEGs and") and no_jpegs.endswith("only/b.png'.")
    assert too_large.startswith("1 images are larger than 8 MiB") and too_large.endswith("only/d.jpg'.")
    caplog.clear()
    pack(src, tmp_path / "y.beton", workers=1)
    assert not caplog.text


def test_an_unreadable_file_is_an_error_and_not_a_bad_image(tmp_path, monkeypatch):
    src, begin = one_class(tmp_path, GOOD), pack_module.open_unfinished

    def remove_one(*args, **options):
        (src / "only" / "good_z.png").unlink()
        return begin(*args, **options)

    monkeypatch.setattr(pack_module, "open_unfinished", remove_one)
    with pytest.raises(RuntimeError, match="cannot read .*only/good_z.png'"):
        pack(src, tmp_path / "x.beton", workers=1, skip_bad=True)
    assert not (tmp_path / "x.beton").exists()


def test_a_file_that_appears_while_packing_is_not_overwritten(tmp_path, monkeypatch):
    src, dst, check = write_images(tmp_path / "images", 2), tmp_path / "x.beton", pack_module.damaged_images

    def appear(*args, **options):
        dst.write_text("precious")
        return check(*args, **options)

    monkeypatch.setattr(pack_module, "damaged_images", appear)
    with pytest.raises(ValueError, match="was created by another process"):
        pack(src, dst, workers=1)
    assert dst.read_text() == "precious" and not side_path(dst).exists()


def test_a_dangling_link_or_foreign_file_at_the_side_files_path_is_rejected_and_kept(tmp_path):
    src, dst = write_images(tmp_path / "images", 2), tmp_path / "x.beton"
    dst.symlink_to(tmp_path / "no")
    with pytest.raises(ValueError, match="dst '.*x.beton' already exists .a broken link"):
        pack(src, dst, workers=1)
    dst.unlink()
    for text, message in (("mine", "be JSON"), ("[" * 100_000, "nested too deeply"), ("{}", "have format 2")):
        side_path(dst).write_text(text)
        with pytest.raises(ValueError, match=f"x.beton.json' exists, but is not a side file .*{message}"):
            pack(src, dst, workers=1)
        assert side_path(dst).read_text() == text
    side_path(dst).unlink()
    side_path(dst).symlink_to(tmp_path / "no")
    with pytest.raises(ValueError, match="is not a side file"):
        pack(src, dst, workers=1)
    assert names_in(tmp_path) == ["images", "x.beton.json"]


@pytest.mark.parametrize("restart", [False, True])
def test_files_of_a_run_killed_between_its_two_renames_are_used_or_replaced(tmp_path, monkeypatch, restart):
    src, dst, replace = write_images(tmp_path / "images", 2), tmp_path / "x.beton", os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: os._exit(7) if Path(new) == dst else replace(old, new))
    process = os.fork()
    if process == 0:
        pack(src, dst, workers=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 7
    monkeypatch.undo()
    assert side_path(dst).exists() and not dst.exists()
    info = pack(src, dst, workers=1, restart=restart, quality=80 if restart else 90)
    assert check_beton(dst) == info and names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


@pytest.mark.parametrize("is_cut, message", [(False, "its CRC-32 differs"), (True, "cannot be read completely")])
def test_damage_between_writing_and_reading_back_is_detected_and_fixed(tmp_path, monkeypatch, is_cut, message):
    src = one_class(tmp_path, {f"{i}.png": Image.new("RGB", (8, 8), (i, i, i)) for i in range(5)})
    dst, check = tmp_path / "x.beton", pack_module.damaged_images

    def damage(path, images, **options):
        content = bytearray(path.read_bytes())
        start = int(images["offset"][3])
        content[start + 9] ^= 16
        path.write_bytes(content[: start + 50] if is_cut else content)
        return check(path, images, **options)

    monkeypatch.setattr(pack_module, "damaged_images", damage)
    with pytest.raises(
        ValueError, match=f"damaged. The first one, from .*only/3.png', .*{message}.*which packs the damaged"
    ):
        pack(src, dst, write_mode="raw", workers=1)
    assert not dst.exists() and not side_path(dst).exists()
    monkeypatch.undo()
    info = pack(src, dst, write_mode="raw", workers=1)
    assert [stored(dst, i)[0, 0, 0] for i in range(5)] == [0, 1, 2, 3, 4] and check_beton(dst) == info
    assert names_in(tmp_path) == ["images", "x.beton", "x.beton.json"]


def test_a_worker_that_fails_names_the_reason(tmp_path, monkeypatch):
    src = write_images(tmp_path / "images", 2)
    monkeypatch.setattr(writer, "_load", lambda packing, index: 1 // 0)
    with pytest.raises(ZeroDivisionError) as failed:
        pack(src, tmp_path / "x.beton", workers=2)
    assert "_store_part" in str(failed.value.__cause__)
    assert names_in(tmp_path) == ["images"]


def test_a_file_size_limit_gives_a_clear_error(tmp_path):
    src, dst = write_images(tmp_path / "images", 40), tmp_path / "x.beton"
    words = shlex.join(map(str, (*COMMAND, src, dst, "--write_mode", "raw", "--workers", "2")))
    done = subprocess.run(["bash", "-c", f"ulimit -f 8200; {words}"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot write images: [Errno 27] File too large" in done.stderr
    assert names_in(tmp_path) == [".x.beton.partial", "images"] and "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_gives_a_clear_error_and_freeing_space_helps(tmp_path, caplog):
    images, disk = noise(80, 220, 220), tmp_path / "disk"
    src = one_class(tmp_path, images)
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(RuntimeError, match="No space left on device"):
            pack(src, disk / "x.beton", write_mode="raw", workers=1)
        assert not (disk / "x.beton").exists()
        assert "kept 1 finished parts of up to 64 images (0.01 GB) in" in caplog.text
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        info = pack(src, disk / "x.beton", write_mode="raw", workers=1)
        assert content_of(info.path) == [pixels.tobytes() for pixels in images]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "dst, options, message",
    [
        ("x.bin", {}, "must end in .beton"),
        ("no/x.beton", {}, "the folder of dst, .*does not exist"),
        ("old.beton", {}, "already exists"),
        ("x.beton", {"write_mode": "smart"}, "one of jpg, raw, proportion"),
        ("x.beton", {"quality": 0}, "quality must be"),
        ("x.beton", {"max_resolution": 70000}, "max_resolution must be"),
        ("x.beton", {"short_side": -1}, "short_side must be"),
        ("x.beton", {"workers": -1}, "workers must be"),
        ("x.beton", {"short_side": 5, "max_resolution": 5}, "max_resolution and short_side are both given"),
        ("x.beton", {"passthrough": True, "write_mode": "raw"}, "passthrough needs write_mode 'jpg'"),
    ],
)
def test_invalid_arguments_are_rejected_and_nothing_is_overwritten(tmp_path, dst, options, message):
    (tmp_path / "old.beton").write_text("precious")
    with pytest.raises(ValueError, match=message):
        pack(write_images(tmp_path / "images", 2), tmp_path / dst, **options)
    assert (tmp_path / "old.beton").read_text() == "precious" and names_in(tmp_path) == ["images", "old.beton"]
