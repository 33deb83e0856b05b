"""Which checkpoint a run starts from, and which are kept."""

import pytest

from vitkd_ds.checkpoint import load, save


def make(run_folder, *steps, latest=None):
    folder = run_folder / "checkpoints"
    for step in steps:
        (folder / f"step{step:08d}").mkdir(parents=True)
    if latest:
        (folder / "latest").write_text(f"step{latest:08d}")
    return folder


@pytest.mark.parametrize("content", [None, "", "step0000", "nonsense\0", "../step00000001"])
def test_a_damaged_latest_is_no_reason_to_start_anew(tmp_path, content):
    folder = make(tmp_path, 1, 2)
    if content is not None:
        (folder / "latest").write_text(content)
    assert load.find("auto", tmp_path).tag == "step00000002"


def test_a_named_checkpoint_is_taken_else_latest_and_not_a_newer_one_of_a_time_line_that_was_left(tmp_path):
    assert load.find("auto", tmp_path) is None and load.find("none", tmp_path) is None
    folder = make(tmp_path, 2, 4, 6, latest=4)
    assert load.find("auto", tmp_path) == load.Start(folder, "step00000004", is_own=True, is_named=False)
    named = load.Start(folder, "step00000002", is_own=True, is_named=True)
    assert load.find(str(folder / "step00000002"), tmp_path) == named


def test_another_runs_checkpoint_starts_this_run_once_and_then_its_own_go_on(tmp_path):
    other = make(tmp_path / "other", 2, latest=2)
    own = tmp_path / "own"
    named = load.Start(other, "step00000002", is_own=False, is_named=True)
    assert load.find(str(tmp_path / "other"), own) == load.find(str(other / "step00000002"), own) == named
    folder = make(own, 3, latest=3)
    assert load.find(str(tmp_path / "other"), own).folder == folder


def test_the_newest_the_best_and_latest_are_kept_and_no_leftovers(tmp_path):
    folder = make(tmp_path, 1, 2, 3, 4, 9, latest=4)
    for leftover in (".step00000003.0f3a.part", ".step00000003.old", ".universal"):
        (folder / leftover).mkdir()
    (folder / "best").write_text("step00000001")
    save._delete_old(folder, 2)
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert [name[-1] for name in kept] == ["1", "3", "4", "9"], "9 is of a time line that was left"
