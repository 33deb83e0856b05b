"""Damage in a checkpoint is found before anything is loaded, and the next older checkpoint is loaded instead."""

import json
import pickle
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.threaded import on_ranks
from vitkd_ds.checkpoint import save
from vitkd_ds.checkpoint.files import write_whole
from vitkd_ds.checkpoint.load import Start, TrainState, find, newest_whole, restore
from vitkd_ds.checkpoint.manifest import check_files, read_manifest, write_manifest
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine.state_files import load_file

STATE = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


def make(folder, *steps, latest=None):
    for step in steps:
        path = folder / "checkpoints" / f"step{step:08d}"
        path.mkdir(parents=True)
        files = {"a": write_whole(path / "a", lambda file: file.write(b"small"))}
        files[STATE] = write_whole(path / STATE, lambda file: torch.save({"x": torch.arange(5000)}, file))
        write_manifest(path, files, {"train_state": {"step": step}, "layout": {"a": "large"}})
    (folder / "checkpoints" / "latest").write_text(f"step{latest or steps[-1]:08d}")
    return path


def test_each_checker_finds_the_damage_in_its_share(tmp_path):
    path = make(tmp_path, 1)
    manifest = read_manifest(path)
    assert torch.equal(load_file(path / STATE)["x"], torch.arange(5000))
    for damaged in ([], ["a"], ["a", STATE]):
        for name in damaged[-1:]:
            change(name, lambda content: content[:-1] + b"?")(path)
        for num_parts in (1, 2, 3):
            found = [check_files(path, manifest, part=part, num_parts=num_parts) for part in range(num_parts)]
            # A checker names the first bad file of its share; its largest file comes first.
            expected = damaged if num_parts > 1 else damaged[-1:]
            assert sorted(filter(None, found)) == [f"{name} has changed: its checksum differs" for name in expected]


def change(name, function):
    """Damage that replaces a file's content by `function(content)`."""
    return lambda path: (path / name).write_bytes(function((path / name).read_bytes()))


TORN = change(STATE, lambda content: content[:-1])
MANIFEST = "manifest.json"


DAMAGE = {
    "torn": (TORN, f"{STATE} has .* bytes instead of "),
    "empty": (change(STATE, lambda content: b""), f"{STATE} has 0 bytes instead of "),
    "missing": (lambda path: (path / STATE).unlink(), f"{STATE} is missing"),
    "tampered": (change(STATE, lambda content: content[:-1] + b"?"), f"{STATE} has changed: its checksum differs"),
    "another file": (lambda path: (path / "mp_rank_01_model_states.pt").touch(), "is not listed in the manifest"),
    "manifest missing": (lambda path: (path / MANIFEST).unlink(), "manifest.json is missing"),
    "manifest torn": (change(MANIFEST, lambda content: b'{"format": 1, '), "manifest.json cannot be"),
    "manifest empty": (change(MANIFEST, lambda content: b""), "manifest.json cannot be read"),
    "manifest of infinite length": (
        change(MANIFEST, lambda content: b'{"format": 1, "files": {"a": {"bytes": Infinity, "blake2b": ""}}}'),
        "manifest.json cannot be read",
    ),
    "manifest of brackets": (change(MANIFEST, lambda content: b"[" * 100_000), "manifest.json cannot be read"),
    "manifest that is no text": (change(MANIFEST, lambda content: b"\xff" * 9), "manifest.json cannot be read"),
    "manifest of nonsense": (change(MANIFEST, lambda content: b"[1]"), "manifest.json cannot be read"),
    "manifest tampered": (
        change(MANIFEST, lambda content: content.replace(b"large", b"other")),
        "manifest.json has changed: its checksum differs",
    ),
    "of another step": (lambda path: write_manifest(path, {}, {"train_state": {"step": 7}}), "belongs to step 7"),
    "all": (shutil.rmtree, "manifest.json is missing"),
}


@pytest.mark.parametrize("damage, message", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_the_next_older_checkpoint_is_loaded(tmp_path, caplog, damage, message):
    newest = make(tmp_path, 1, 2, 3)
    damage(newest)
    found = newest_whole(find("auto", tmp_path))
    assert found.tag == "step00000002" and found.manifest["train_state"] == {"step": 2}
    assert f"skipping {'damaged' if newest.exists() else 'missing'} checkpoint {newest}" in caplog.text
    with pytest.raises(ValueError, match=message):
        newest_whole(find(str(newest), tmp_path) if newest.exists() else Start(newest.parent, newest.name, True, True))


def test_a_newer_checkpoint_of_an_abandoned_continuation_does_not_count_as_damaged(tmp_path):
    TORN(make(tmp_path, 1, 2, 9, 3))
    assert find("auto", tmp_path).tag == "step00000003" and newest_whole(find("auto", tmp_path)).tag == "step00000002"


@pytest.mark.parametrize("is_own, best", [(True, (50.0, 2)), (False, (-1.0, 0))])
def test_another_runs_best_result_is_not_inherited(tmp_path, is_own, best):
    state, loaded = TrainState(7, 5, step=4, best_top1=50.0, best_step=2), []
    start = Start(tmp_path, "step00000004", is_own, not is_own, {"train_state": asdict(state)})
    found = restore(SimpleNamespace(load=loaded.append), start, steps_per_epoch=7, data=5)
    assert found == replace(state, best_top1=best[0], best_step=best[1]) and loaded == [tmp_path / "step00000004"]


def test_extra_files_of_a_file_system_or_person_are_not_damage(tmp_path):
    path = make(tmp_path, 1)
    (path / ".nfs0000001").touch()
    (path / "notes.txt").write_text("the good one")
    assert newest_whole(find("auto", tmp_path)).tag == path.name


def test_a_state_of_another_version_gives_a_clear_error(tmp_path):
    make(tmp_path, 1)
    start = newest_whole(find("auto", tmp_path))
    start.manifest["train_state"] = {"step": 1, "steps_per_epoch": 7, "data": 1, "later": 2}
    with pytest.raises(ValueError, match="step00000001 was saved by another version: .*'later'"):
        restore(None, start, steps_per_epoch=7, data=1)


def test_without_a_whole_checkpoint_training_does_not_start_over(tmp_path):
    make(tmp_path, 1, 2)
    for step in (1, 2):
        TORN(tmp_path / "checkpoints" / f"step0000000{step}")
    with pytest.raises(ValueError, match="no intact checkpoint in .*: step00000002: .*; step00000001: "):
        newest_whole(find("auto", tmp_path))


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


def test_code_in_a_state_file_is_not_run_even_with_a_matching_manifest(tmp_path, capsys):
    for write, message in (
        (torch.save, "contains the Python object .*print, but only tensors and plain data are allowed"),
        (lambda bomb, file: pickle.dump(bomb, file, protocol=2), "is not in torch.save's zip format"),
    ):
        write_whole(tmp_path / "state", lambda file, write=write: write(Bomb(), file))
        with pytest.raises(ValueError, match=message) as refused:
            load_file(tmp_path / "state")
        assert "weights_only" not in str(refused.value) and "add_safe_globals" not in str(refused.value)
    assert "boom" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "", "step0000", "nonsense\0", "../step00000001"])
def test_a_damaged_latest_does_not_make_training_start_over(tmp_path, content):
    folder = make(tmp_path, 1, 2).parent
    (folder / "latest").unlink()
    if content is not None:
        (folder / "latest").write_text(content)
    assert find("auto", tmp_path).tag == "step00000002"


def test_a_named_checkpoint_is_loaded_or_else_latest_but_no_abandoned_newer_one(tmp_path):
    assert find("auto", tmp_path) is None and find("none", tmp_path) is None
    folder = make(tmp_path, 2, 4, 6, latest=4).parent
    assert find("auto", tmp_path) == Start(folder, "step00000004", is_own=True, is_named=False)
    named = Start(folder, "step00000002", is_own=True, is_named=True)
    assert find(str(folder / "step00000002"), tmp_path) == named


def begin(workdir, resume):
    (workdir / "config.json").write_text(json.dumps({"run": {"resume": str(resume)}}))


def test_a_runs_own_named_checkpoint_is_used_once_and_then_its_newest(tmp_path, monkeypatch):
    folder = make(tmp_path, 2, 4, 6).parent
    begin(tmp_path, "auto")
    named = find(str(folder / "step00000002"), tmp_path)
    assert named == Start(folder, "step00000002", is_own=True, is_named=True)
    Saver(tmp_path, CheckpointConfig(), {}).begin(replace(named, manifest={"train_state": {"best_step": 0}}))
    begin(tmp_path, folder / "step00000002")
    # Requeued before the first save, and after it when the named checkpoint no longer exists; also by a relative path.
    monkeypatch.chdir(tmp_path)
    for tag in ("step00000002", "step00000003"):
        if tag == "step00000003":
            make(tmp_path, 3)
            shutil.rmtree(folder / "step00000002")
        for resume in (folder / "step00000002", Path("checkpoints/step00000002"), "auto"):
            start = find(str(resume), tmp_path)
            assert start == Start(folder, tag, is_own=True, is_named=False)
    assert find(str(folder / "step00000004"), tmp_path).tag == "step00000004", "a different request"
    with pytest.raises(ValueError, match="must be auto, none, a run folder or a checkpoint in one, got .*step00000005"):
        find(str(folder / "step00000005"), tmp_path)


def test_another_runs_checkpoint_is_used_once_and_then_this_runs_own(tmp_path):
    other = make(tmp_path / "other", 2).parent
    own = tmp_path / "own"
    named = Start(other, "step00000002", is_own=False, is_named=True)
    assert find(str(tmp_path / "other"), own) == find(str(other / "step00000002"), own) == named
    folder = make(own, 3).parent
    assert find(str(tmp_path / "other"), own).folder == folder
    begin(own, tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    assert find(str(tmp_path / "other"), own).folder == folder, "which no longer needs the other run"


def test_the_newest_the_best_and_latest_are_kept_and_no_leftovers(tmp_path):
    folder = make(tmp_path, 1, 2, 3, 4, 9, latest=4).parent
    for leftover in (".step00000003.0f3a.part", ".step00000003.old"):
        (folder / leftover).mkdir()
    (folder / "best").write_text("step00000001")
    save._delete_old(folder, 2)
    kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert [name[-1] for name in kept] == ["1", "3", "4", "9"], "step 9 belongs to an abandoned continuation"


def views(tmp_path, *steps):
    """One run folder as three ranks see it: on a network file system they may see different files for a while."""
    for rank in range(3):
        make(tmp_path / str(rank), *steps)
    return [tmp_path / str(rank) for rank in range(3)]


def test_ranks_that_see_other_files_take_the_same_checkpoint(tmp_path, caplog):
    workdirs = views(tmp_path, 1, 2, 3)
    for workdir in workdirs:
        TORN(workdir / "checkpoints" / "step00000003")
    shutil.rmtree(workdirs[1] / "checkpoints" / "step00000002")
    (workdirs[2] / "checkpoints" / "step00000001" / MANIFEST).unlink()
    (workdirs[2] / "checkpoints" / "step00000000").mkdir()
    found = on_ranks(3, lambda rank: newest_whole(find("auto", workdirs[rank])))
    assert [start.tag for start in found] == ["step00000001"] * 3
    assert all(start.manifest == found[0].manifest for start in found)
    assert caplog.text.count("skipping damaged checkpoint") == 2, "only rank 0 logs it"


@pytest.mark.parametrize("damaged", range(2))
def test_damage_found_by_one_rank_is_known_on_all(tmp_path, damaged):
    # Two files hold shares for two ranks; the third rank checks none.
    workdirs = views(tmp_path, 1, 2)
    for name in ("a", STATE):
        change(name, lambda content: content[:-1] + b"?")(workdirs[damaged] / "checkpoints" / "step00000002")
    found = on_ranks(3, lambda rank: newest_whole(find("auto", workdirs[rank])))
    assert [start.tag for start in found] == ["step00000001"] * 3
