"""Unpacked data: output of read-only commands, and runs that are rejected before any packing."""

from dataclasses import replace

import pytest

from tests.checkpoint.test_folder import finish
from tests.commands.pack.test_folders import refused, run_of
from tests.commands.pack.test_pack import names_in
from tests.conftest import run_command
from vitkd_ds.commands.pack import pack
from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.commands.parse import parse_run
from vitkd_ds.config.run import TeacherConfig
from vitkd_ds.data.beton.format import check_beton
from vitkd_ds.recipes import build_run


def test_read_only_commands_use_a_folders_packed_file_and_say_how_to_create_it(photos):
    train, val = photos / "train", photos / "val"

    def found(train, val):
        return pack_folders(run_of(train, val), may_pack=False).data

    with pytest.raises(ValueError, match=f"data.train is a folder that is not packed yet: '{train}.beton'") as first:
        found(train, val)
    assert names_in(photos) == ["train", "val"]
    run_command("bash", "-c", str(first.value).partition("Run: ")[2])
    with pytest.raises(ValueError, match=f"data.val is a folder .*{val}.beton --classes {train}.beton") as second:
        found(train, val)
    assert (found(train, train).train, found(train, train).val) == (f"{train}.beton",) * 2
    run_command("bash", "-c", str(second.value).partition("Run: ")[2])
    assert check_beton(f"{val}.beton").classes == ("ant", "bird", "cat")
    assert (found(train, val).train, found(train, val).val) == (f"{train}.beton", f"{val}.beton")
    (train / "ant" / "000.png").unlink()
    with pytest.raises(ValueError, match="has changed since"):
        found(train, val)


@pytest.mark.parametrize("name", ["tars", "one.tar"])
def test_data_that_must_be_packed_are_rejected_with_the_pack_command(photos, monkeypatch, name):
    monkeypatch.chdir(photos)
    (photos / "tars").mkdir()
    (photos / "tars" / "0.tar").touch()
    match = rf"data.train must be a .beton or a folder .* got '{name}'. Pack it first \(vitkd-ds pack {name} FILE.b"
    refused(name, match=match)
    for flags in ({}, {"data.num_classes": "3"}):
        with pytest.raises(ValueError, match=match):
            pack_folders(parse_run((), {"recipe": "demo_plain", "data.train": name, "data.num_classes": "0"} | flags))
    flags = {"recipe": "demo_plain", "data.train": name, "data.num_classes": "0", "data.backend": "torchvision"}
    with pytest.raises(
        ValueError, match="'tars' does not list its classes|no file or folder at 'one.tar'. Check the path"
    ):
        parse_run((), flags)


def test_a_folders_classes_come_from_its_packed_file_even_if_a_list_set_them(photos):
    flags = {"recipe": "demo_plain", "data.train": str(photos / "train"), "data.num_classes": "0"}
    assert parse_run((), dict(flags)).data.num_classes == 3
    (photos / "names").write_text("ant\nbird\ncat\ndog\n")
    pack(photos / "train", photos / "train.beton", classes=str(photos / "names"))
    run = parse_run((), dict(flags))
    assert run.data.num_classes == 4 and pack_folders(run).data.train == f"{photos}/train.beton"
    assert parse_run((), flags | {"data.backend": "torchvision"}).data.num_classes == 3


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            {"student.model": "deit_tiny_patch16_244"},
            "student.model=deit_tiny_patch16_244 is not a timm model",
        ),
        ({"teacher.model": "regnet", "losses.nkd.weight": "1"}, "teacher.model=regnet is not a timm model"),
        ({"ds_config": "ds_configs/none.json"}, "ds_configs/none.json"),
        ({"workdir": "used"}, "seed: 1 there, 0 now; .*. Pass another --workdir"),
        (
            {"teacher.model": "deit_tiny_patch16_224", "teacher.checkpoint": "none.pth", "losses.nkd.weight": "1"},
            "teacher.checkpoint: no weight file, run, checkpoint or export at none.pth",
        ),
        (
            {"student.init": "select:hub:deit_nano"},
            "student.init=select:hub:deit_nano: deit_nano is not a timm model",
        ),
        ({"student.init": "runs/missing"}, "student.init: no weight file, run, checkpoint or export at runs/missing"),
    ],
)
def test_a_rejected_run_packs_nothing(photos, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "used").mkdir()
    finish(replace(build_run("demo_plain"), workdir="used", seed=1))
    flags = {
        "recipe": "demo_plain",
        "workdir": "new",
        "data.train": str(photos / "train"),
        "data.num_classes": "0",
        "student.model_args": "{}",
    } | flags
    with pytest.raises(ValueError, match=message):
        pack_folders(parse_run((), flags))
    assert names_in(photos) == ["train", "val"]


def test_a_stored_run_with_a_missing_teacher_packs_nothing(photos, tmp_path):
    run = run_of(photos / "train")
    teacher = TeacherConfig("deit_tiny_patch16_224", checkpoint=str(tmp_path / "gone.pth"))
    with pytest.raises(ValueError, match="teacher.checkpoint: no weight file, .*gone.pth"):
        pack_folders(replace(run, teachers={"teacher": teacher}))
    assert names_in(photos) == ["train", "val"]
