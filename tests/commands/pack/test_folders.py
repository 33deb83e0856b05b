"""Folders as data.train and data.val: packed once, reused, rejected after a change; concurrent and killed runs."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.pack.test_pack import content_of, names_in
from tests.commands.pack.test_parts import end, feed, finished, with_late_image
from tests.conftest import ROOT, finish_ranks, run_command, wait_until
from tests.data.conftest import write_images
from tests.tiers import costly
from vitkd_ds.commands.pack import folders, pack
from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.data.beton.format import check_beton, partial_path, read_beton
from vitkd_ds.data.beton.side_file import side_path
from vitkd_ds.data.demo import CLASSES, demo_beton
from vitkd_ds.data.loader import build_loader
from vitkd_ds.data.torchvision import open_beton
from vitkd_ds.recipes import build_run
from vitkd_ds.train import signals

PROGRAM = """
import sys
from dataclasses import replace
from vitkd_ds.commands.pack.folders import packed_or_exit
from vitkd_ds.recipes import build_run
from vitkd_ds.train import console, signals
signals.listen()
console.install()
run = build_run("demo_plain")
data = replace(run.data, train=sys.argv[1], val=sys.argv[2], num_classes=int(sys.argv[3]))
found = packed_or_exit(replace(run, data=data))
print("RESULT", found.data.train, found.data.val, "torch" in sys.modules, flush=True)
"""


def run_of(train="demo", val="demo", **changes):
    run = build_run("demo_plain")
    return replace(run, data=replace(run.data, **{"train": str(train), "val": str(val), "num_classes": 3} | changes))


def packed(train="demo", val="demo", **changes):
    """The paths that replace a run's folders."""
    data = pack_folders(run_of(train, val, **changes)).data
    return data.train, data.val


def refused(*paths, match, **changes):
    with pytest.raises(ValueError, match=match):
        pack_folders(run_of(*paths, **changes))


def test_both_folders_are_packed_once_next_to_themselves_with_trainings_classes(photos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run = run_of(photos / "train", photos / "val", image_size=16)
    found = pack_folders(run)
    files = [photos / "train.beton", photos / "val.beton"]
    assert found == replace(run, data=replace(run.data, train=str(files[0]), val=str(files[1])))
    twins = [pack(photos / "train", tmp_path / "t.beton").path]
    twins.append(pack(photos / "val", tmp_path / "v.beton", classes=str(twins[0]), passthrough=True).path)
    for file, twin in zip(files, twins, strict=True):
        assert content_of(file) == content_of(twin) and replace(check_beton(file), path=twin) == check_beton(twin)
        assert read_beton(file)[2].tolist() == read_beton(twin)[2].tolist()
    assert set(read_beton(files[1])[2].tolist()) == {0, 2} and check_beton(files[1]).classes == ("ant", "bird", "cat")
    loader = build_loader(found.data, split="val", micro_batch_size=6)
    assert next(loader.epoch(0))[1].tolist() == [0] * 3 + [2] * 3
    said = [record.getMessage() for record in caplog.records if record.name.endswith("folders")]
    folders_packed = (run.data.train, run.data.val)
    assert said == [f"packing {src} into {src}.beton; later starts reuse that file" for src in folders_packed]
    # Again, from another folder and by another spelling: the files are used as they are.
    times, content = [file.stat().st_mtime_ns for file in files], names_in(photos)
    caplog.clear()
    os.symlink(photos, tmp_path / "link")
    assert packed(f"{tmp_path}/link/train/", tmp_path / "link" / "val")[0] == f"{tmp_path}/link/train.beton"
    assert f"using {tmp_path}/link/train.beton, packed earlier from {tmp_path}/link/train" in caplog.text
    assert [file.stat().st_mtime_ns for file in files] == times and names_in(photos) == content
    shutil.move(photos, tmp_path / "elsewhere")
    assert packed(tmp_path / "elsewhere" / "train")[0] == str(tmp_path / "elsewhere" / "train.beton")


def test_validation_photos_are_kept_unchanged_and_training_photos_are_reencoded(photos):
    for split in ("train", "val"):
        with Image.open(photos / split / "ant" / "000.png") as image:
            image.resize((600, 600)).save(photos / split / "ant" / "000.jpg", quality=30)
    jpeg = (photos / "val" / "ant" / "000.jpg").read_bytes()
    train, val = (open_beton(path)[0] for path in packed(photos / "train", photos / "val"))
    assert val.read(0) == jpeg and check_beton(photos / "val.beton").passthrough == 1
    assert check_beton(photos / "train.beton").passthrough == 0 and len(train.read(0)) != len(jpeg)


@pytest.mark.cold
def test_only_class_folders_for_ffcv_are_packed_and_deciding_it_needs_no_torch(photos, monkeypatch):
    monkeypatch.chdir(photos)
    shutil.copytree(photos / "val", photos / "demo")
    torchvision = run_of(photos / "train", photos / "val", backend="torchvision")
    for run in (torchvision, run_of(), run_of("x.beton", "no/folder"), run_of("", "")):
        assert pack_folders(run) == run and names_in(photos) == ["demo", "train", "val"]
    for src, number in ((photos / "train", 4), (photos, 1000)):  # the latter's folders are no classes
        refused(src, num_classes=number, match=f"data.train must have data.num_classes={number} class folders, got 3")
    assert names_in(photos) == ["demo", "train", "val"] and names_in(photos.parent) == ["photos"]
    pack(photos / "train", photos / "train.beton")
    pack(photos / "val", photos / "val.beton")
    for environ in ({"RANK": "0"}, {"RANK": "1"}):
        words = [sys.executable, "-c", PROGRAM, photos / "train", photos / "val", "3"]
        done = subprocess.run(words, env=os.environ | environ, cwd=ROOT, text=True, capture_output=True, timeout=60)
        assert done.stdout == f"RESULT {photos}/train.beton {photos}/val.beton False\n", done.stderr


def test_a_validation_folder_takes_trainings_classes_from_any_source(tmp_path, photos, demo_cache):
    val = write_images(tmp_path / "some", 4, classes=(CLASSES[3], CLASSES[1]))
    assert packed("demo", val) == ("demo", f"{val}.beton")
    assert check_beton(f"{val}.beton").classes == check_beton(demo_beton("train")).classes == CLASSES
    assert read_beton(f"{val}.beton")[2].tolist() == [1, 1, 3, 3]
    train = pack(photos / "train", tmp_path / "own.beton").path
    assert packed(train, photos / "val") == (str(train), f"{photos}/val.beton")
    assert check_beton(photos / "val.beton").classes == ("ant", "bird", "cat")
    os.rename(photos / "val" / "cat", photos / "val" / "cats")
    (photos / "val.beton").unlink()
    refused(
        train,
        photos / "val",
        match=r"(?s)own.beton' has 3 classes, .*cats' \(did you mean cat.*The command that failed: vitkd-ds pack "
        r".*/val .*/val.beton --classes .*/own.beton --passthrough",
    )
    refused("no.beton", photos / "val", match="'no.beton' must be a .beton file, but does not exist")


@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "size", "class", "no class"])
def test_a_changed_folder_is_rejected_until_its_packed_file_is_removed(photos, change):
    train = photos / "train"
    packed(train)
    image = train / "bird" / "001.png"
    if change == "more":
        shutil.copy(image, train / "ant" / "new.png")
    elif change == "fewer":
        image.unlink()
    elif change == "renamed":
        image.rename(image.with_name("002.png"))
    elif change == "size":
        image.write_bytes(image.read_bytes() + b"\0")
    elif change == "class":
        shutil.copytree(train / "bird", train / "eel")
    else:
        shutil.rmtree(train / "bird")
    with pytest.raises(ValueError, match=r"train' has changed since '.*train.beton' was packed from it") as refusal:
        packed(train)
    assert f". Pass {train}.beton instead of the folder to use it anyway, or pack again:" in str(refusal.value)
    assert packed(f"{train}.beton")[0] == f"{train}.beton"
    command = str(refusal.value).partition("or pack again: ")[2]
    assert command == f"rm {train}.beton {train}.beton.json && vitkd-ds pack {train} {train}.beton"
    if change == "more":  # run once, because every start of Python takes time
        run_command("bash", "-c", command)
    else:
        (photos / "train.beton").unlink()
        (photos / "train.beton.json").unlink()
    packed(train, num_classes=len(names_in(train)))
    assert check_beton(photos / "train.beton").num_images == len(list(train.rglob("*.png")))


def test_a_file_packed_by_hand_is_used_and_one_without_a_recorded_source_is_rejected(photos):
    (photos / "names").write_text("cat\ndog\nant\n")
    (photos / "val" / "ant" / "bad.png").write_bytes(b"no image")
    refused(photos / "train", photos / "val", match="bad.png' does not .*vitkd-ds pack to skip")
    pack(photos / "val", photos / "val.beton", classes=str(photos / "names"), skip_bad=True, shuffle=True, restart=True)
    assert packed(photos / "train", photos / "val") == (f"{photos}/train.beton", f"{photos}/val.beton")
    side = side_path(photos / "val.beton")
    side.write_text("".join(line for line in side.read_text().splitlines(True) if '"source"' not in line))
    assert check_beton(photos / "val.beton").shuffled
    refused(photos / "train", photos / "val", match="cannot tell whether .*val.beton' matches .* older version")


def test_an_unwritable_folder_gives_a_clear_error(photos):
    with tempfile.TemporaryDirectory() as top:  # not below pytest's folder, which only its owner may enter
        shutil.copytree(photos, Path(top, "photos"))
        for path, mode in ((top, 0o755), (Path(top, "photos"), 0o555)):
            os.chmod(path, mode)
        os.seteuid(65534 if os.getuid() == 0 else os.getuid())  # root ignores file permissions
        try:
            refused(
                Path(top, "photos", "train"),
                match="cannot pack data.train into '.*train.beton': .*Permission denied.*. "
                "Make '.*photos' writable. Or pack into another folder",
            )
        finally:
            os.seteuid(os.getuid())
        assert names_in(Path(top, "photos")) == ["train", "val"]
        os.chmod(Path(top, "photos"), 0o755)


def late(tmp_path):
    """One class with 200 images and a late one that blocks its readers, and a second class with one image."""
    src = with_late_image(tmp_path)
    (src / "other").mkdir()
    shutil.copy(src / "only" / "000.png", src / "other")
    return src


@pytest.fixture
def start():
    """A function that starts processes which pack a folder as a run would; it returns once the first one is packing."""
    processes = []

    def start_all(src, *ranks):
        dst = src.with_name(f"{src.name}.beton")
        for rank in ranks:
            words = [sys.executable, "-u", "-c", PROGRAM, str(src), "demo", "2"]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            processes.append(subprocess.Popen(words, env=os.environ | {"RANK": rank}, cwd=ROOT, **streams))
            wait_until(lambda: len(finished(dst)) >= 3, processes)
        return processes

    yield start_all
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_other_ranks_and_runs_wait_for_the_packing_process(tmp_path, start):
    src = late(tmp_path)
    processes = start(src, "0", "1", "0")
    assert any("later starts reuse" in line for line in processes[2].stdout), "and then it waits for the lock"
    time.sleep(6)  # for 5 s, and then for the file
    assert all(process.poll() is None for process in processes)
    feed(src)
    said = finish_ranks(processes, timeout=60)
    dst = tmp_path / "images.beton"
    assert all(f"RESULT {dst} demo" in text for text in said) and check_beton(dst).num_images == 202
    assert [text.count("later starts reuse") for text in said] == [1, 0, 0], "that of the third is read already"
    assert [text.count("using ") for text in said] == [0, 0, 1]
    assert names_in(tmp_path) == ["images", "images.beton", "images.beton.json"]


@pytest.mark.parametrize("number", [signal.SIGTERM, *costly([signal.SIGKILL, signal.SIGINT, signal.SIGUSR1])])
def test_a_run_stopped_while_packing_continues_packing_later(tmp_path, caplog, start, number):
    src = late(tmp_path)
    (process,) = start(src, "0")
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    said = end(process, workers, number)
    assert process.returncode == (-9 if number == signal.SIGKILL else 0) and not (tmp_path / "images.beton").exists()
    assert number == signal.SIGKILL or "finished parts" in said and "Rerun the same command to continue" in said
    feed(src)
    assert packed(src, num_classes=2)[0] == f"{src}.beton"
    assert "continuing" in caplog.text and check_beton(f"{src}.beton").num_images == 202
    assert names_in(tmp_path) == ["images", "images.beton", "images.beton.json"]


def test_waiting_ends_without_progress_or_on_a_signal(photos, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("RANK", "1")
    for name, seconds in (("POLL_S", 0.05), ("SAY_S", 0.4), ("PATIENCE_S", 0.6)):
        monkeypatch.setattr(folders, name, seconds)
    partial, begun = partial_path(photos / "train.beton"), time.monotonic()
    partial.mkdir()

    def grow():
        for i in range(12):
            (partial / "images").write_bytes(bytes(1000 * i))
            time.sleep(0.2)

    thread = threading.Thread(target=grow)
    thread.start()
    refused(
        photos / "train",
        match="another process is packing '.*train' into '.*train.beton', but .*partial' has not grown for 0.01 min",
    )
    thread.join()
    assert time.monotonic() - begun > 2.4
    assert caplog.text.count("waiting for another process to pack") >= 3
    monkeypatch.setitem(signals._came, "SIGTERM", 0.0)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            packed(photos / "train")
    assert not (photos / "train.beton").exists()


def test_folders_with_ignored_labels_are_packed_with_their_own_classes(photos, tmp_path):
    assert packed(photos / "train", photos / "val", labels="ignore", num_classes=0)
    assert check_beton(photos / "train.beton").classes == ("ant", "bird", "cat")
    assert check_beton(photos / "val.beton").classes == ("ant", "cat")
    plain = pack(photos / "train", tmp_path / "plain.beton", labels="none").path
    (photos / "val.beton").unlink()
    refused(plain, photos / "val", num_classes=0, match="data.val has class folders, but data.train=.*plain.beton")
    (tmp_path / "loose").mkdir()
    shutil.copy(next((photos / "train").rglob("*.png")), tmp_path / "loose")
    refused(tmp_path / "loose", match="Pack it first .vitkd-ds pack .*loose FILE.beton --labels none")
