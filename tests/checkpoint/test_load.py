"""Which checkpoint a run starts from, which are kept, and which settings may change."""

import json
from dataclasses import replace

import pytest

from vitkd_ds.checkpoint import load, save
from vitkd_ds.checkpoint.folder import check_settings
from vitkd_ds.config.run import as_dict
from vitkd_ds.recipes import build_run


def make(run_folder, *steps, latest=None):
    folder = run_folder / "checkpoints"
    for step in steps:
        (folder / f"step{step:08d}").mkdir(parents=True)
    if latest:
        (folder / "latest").write_text(f"step{latest:08d}")
    return folder


def test_a_new_folder_starts_anew(tmp_path):
    assert load.find("auto", tmp_path) is None and load.find("none", tmp_path) is None


def test_auto_takes_latest_and_not_a_newer_one_of_a_time_line_that_was_left(tmp_path):
    folder = make(tmp_path, 2, 4, 6, latest=4)
    assert load.find("auto", tmp_path) == load.Start(folder, "step00000004", is_own=True, is_named=False)


def test_a_named_checkpoint_of_the_own_folder_is_taken(tmp_path):
    folder = make(tmp_path, 2, 4, latest=4)
    start = load.find(str(folder / "step00000002"), tmp_path)
    assert start == load.Start(folder, "step00000002", is_own=True, is_named=True)


def test_another_runs_checkpoint_starts_this_run_once_and_then_its_own_go_on(tmp_path):
    other = make(tmp_path / "other", 2, latest=2)
    own = tmp_path / "own"
    named = load.Start(other, "step00000002", is_own=False, is_named=True)
    assert load.find(str(tmp_path / "other"), own) == load.find(str(other / "step00000002"), own) == named
    folder = make(own, 3, latest=3)
    assert load.find(str(tmp_path / "other"), own).folder == folder


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--resume must be auto, none, a run folder or a checkpoint in one"):
        load.find(str(tmp_path / "nowhere"), tmp_path)


def test_the_newest_the_best_and_latest_are_kept_and_no_leftovers(tmp_path):
    folder = make(tmp_path, 1, 2, 3, 4, 9, latest=4)
    for leftover in (".step00000003.0f3a.part", ".step00000003.old", ".universal"):
        (folder / leftover).mkdir()
    (folder / "best").write_text("step00000001")
    save._delete_old(folder, 2)
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert [name[-1] for name in kept] == ["1", "3", "4", "9"], "9 is of a time line that was left"


def test_settings_that_change_what_is_learned_may_not_change(tmp_path):
    run = replace(build_run("demo"), workdir=str(tmp_path))
    start = load.Start(make(tmp_path, 2, latest=2), "step00000002", is_own=True, is_named=False)
    (tmp_path / "config.json").write_text(json.dumps({"run": as_dict(run)}))
    moved = replace(run, log_every_steps=1, micro_batch_size_per_gpu=1, data=replace(run.data, train="moved.beton"))
    check_settings(moved, start.config)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        check_settings(replace(run, seed=1), start.config)
    with pytest.raises(ValueError, match="--resume none needs an unused folder"):
        check_settings(run, None)
    (tmp_path / "config.json").write_text("")
    with pytest.raises(ValueError, match="config.json must say what run the checkpoints beside it are of"):
        check_settings(run, start.config)


def test_a_run_that_died_before_its_first_checkpoint_may_start_with_other_settings(tmp_path):
    run = replace(build_run("demo"), workdir=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"run": as_dict(replace(run, seed=1))}))
    assert load.find("auto", tmp_path) is None
    check_settings(run, None)
