"""Saving on one rank: the order of writes to the disk, and the files published after a failure."""

import json
import re
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.threaded import on_ranks
from vitkd_ds.checkpoint.load import TrainState, find, newest_whole
from vitkd_ds.checkpoint.lock import LockLost
from vitkd_ds.checkpoint.save import SaveError, Saver
from vitkd_ds.config.run import CheckpointConfig
from vitkd_ds.engine import ranks

ENGINE = SimpleNamespace(
    layout={"world_size": 1}, student_weights=lambda: {"w": torch.ones(2)},
    state_files=lambda: {"state.pt": {"x": torch.arange(3)}},
)  # fmt: skip


def state_at(step, **values):
    return TrainState(steps_per_epoch=7, data=1, step=step, **values)


def test_a_checkpoint_is_on_disk_before_it_is_renamed_and_renamed_before_latest_points_to_it(tmp_path, disk_calls):
    Saver(tmp_path, CheckpointConfig(), {}).save(ENGINE, state_at(4))
    calls = [(call, re.sub(r"[0-9a-f]{32}", "x", name)) for call, name, *_ in disk_calls]
    written = [
        [("fsync", f".{name}.tmp"), ("replace", name)]
        for name in ("state.pt", "student.safetensors", "student.json", "manifest.json", "latest")
    ]
    assert calls == [
        *sum(written[:-1], []), ("fsync", ".step00000004.x.part"), ("rename", "step00000004"),
        *written[-1], ("fsync", "checkpoints"),
    ]  # fmt: skip


@pytest.mark.parametrize("passed", [0, 1], ids=["before anything is written", "while it was written"])
def test_a_job_that_lost_its_lock_publishes_nothing(tmp_path, passed):
    seen = []

    def check():
        seen.append(sorted(path.name for path in tmp_path.rglob("*") if path.is_file()))
        if len(seen) > passed:
            raise LockLost("taken")

    saver = Saver(tmp_path, CheckpointConfig(max_failures=1), {}, check=check)
    with pytest.raises(LockLost, match="taken"):
        saver.save(ENGINE, state_at(4))
    assert seen[0] == [] and len(seen) == 1 + passed
    assert not passed or "manifest.json" in seen[1], "the lock is checked last, when everything is written"
    assert not any(tmp_path.rglob("step*")) and not any(tmp_path.rglob("latest"))


def test_a_briefly_unreadable_lock_costs_a_checkpoint_but_not_the_run(tmp_path, caplog):
    looks = iter([OSError("stale"), None, None, None])

    def check():
        if error := next(looks):
            raise error

    saver = Saver(tmp_path, CheckpointConfig(max_failures=2), {}, check=check)
    saver.save(ENGINE, state_at(4))
    assert "SAVING FAILED at step 4: rank 0: OSError: stale" in caplog.text and not any(tmp_path.rglob("step*"))
    saver.save(ENGINE, state_at(5))
    assert (saver.folder / "latest").read_text() == "step00000005" and saver.num_failures == 0


def test_a_failed_last_save_ends_the_run_and_earlier_ones_only_in_a_row(tmp_path, caplog):
    saver = Saver(tmp_path / "run", CheckpointConfig(max_failures=2), {})
    good, bad = saver.folder, tmp_path / "file" / "checkpoints"
    (tmp_path / "file").touch()
    for saver.folder in (bad, good, bad):
        saver.save(ENGINE, state_at(4))
    assert caplog.text.count("This is failed save 1 in a row; training stops at number 2") == 2
    saver.folder = bad
    with pytest.raises(SaveError, match="Stopped after 2 failed saves in a row"):
        saver.save(ENGINE, state_at(5))
    saver.num_failures = 0
    with pytest.raises(SaveError, match="Stopped after 1 failed saves in a row"):
        saver.save(ENGINE, state_at(5), is_last_chance=True)


def test_best_is_the_step_of_the_best_evaluation(tmp_path):
    saver = Saver(tmp_path, CheckpointConfig(), {})
    for step, best_step, named in ((4, 0, None), (5, 5, "step00000005"), (6, 5, "step00000005")):
        saver.save(ENGINE, state_at(step, best_step=best_step))
        best = saver.folder / "best"
        assert (best.read_text() if best.exists() else None) == named
        assert (saver.folder / "latest").read_text() == f"step{step:08d}"


@pytest.mark.parametrize("resume", ["named", "older, as the newest is damaged", "newest"])
def test_a_run_resumed_from_an_older_checkpoint_has_the_best_known_then(tmp_path, resume):
    saver = Saver(tmp_path, CheckpointConfig(keep_last=9), {})
    for step, best_step in ((4, 0), (5, 5), (6, 5), (7, 7)):
        saver.save(ENGINE, state_at(step, best_step=best_step))
    best = saver.folder / "best"
    if resume == "older, as the newest is damaged":
        (saver.folder / "step00000007" / "state.pt").unlink()
    start = newest_whole(find(str(saver.folder / "step00000006") if resume == "named" else "auto", tmp_path))
    Saver(tmp_path, CheckpointConfig(), {}).begin(start)
    assert best.read_text() == ("step00000007" if resume == "newest" else "step00000005")
    assert (saver.folder / "latest").read_text() == ("step00000006" if resume == "named" else "step00000007")
    if resume == "named":
        saver.begin(newest_whole(find(str(saver.folder / "step00000004"), tmp_path)))
        assert not best.exists(), "nothing had been evaluated yet"


def test_an_evaluation_is_added_to_its_own_checkpoint(tmp_path, caplog):
    saver, state = Saver(tmp_path, CheckpointConfig(), {}), state_at(4)
    saver.save(ENGINE, state)
    state.result, state.result_step, state.best_step = {"top1": 50.0}, 4, 4
    saver.note(state)
    manifest = json.loads((saver.folder / "step00000004" / "manifest.json").read_text())
    assert manifest["train_state"]["result"] == {"top1": 50.0} and manifest["layout"] == ENGINE.layout
    assert (saver.folder / "best").read_text() == "step00000004"
    saver.note(state_at(5, result={"top1": 60.0}))
    assert not caplog.text, "nothing is written for another step"


def save_on_ranks(tmp_path, *, failing=None, check=None):
    """Save on three ranks, each with its own file, and record a result; `failing` ranks cannot write their file."""

    def on_rank(rank):
        unfit = threading.Lock()  # which torch.save cannot pickle
        files = {f"state{rank}.pt": {"x": unfit if rank == failing else torch.arange(3 + rank)}}
        engine = SimpleNamespace(layout={}, student_weights=ENGINE.student_weights, state_files=lambda: files)
        saver = Saver(tmp_path, CheckpointConfig(max_failures=2), {}, check=check or (lambda: None))
        saver.save(engine, state_at(4))
        saver.note(state_at(4, result_step=4, best_step=4, best_top1=5.0))
        return saver.num_failures, saver.saved_step

    return on_ranks(3, on_rank)


def test_a_checkpoint_has_the_files_of_all_ranks_in_one_folder(tmp_path):
    checked = []
    assert save_on_ranks(tmp_path, check=lambda: checked.append(ranks.rank())) == [(0, 4)] * 3
    assert {*checked} == {0}, "the lock is rank 0's"
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"step00000004", "latest", "best"}
    start = newest_whole(find("auto", tmp_path))
    assert {f"state{rank}.pt" for rank in range(3)} < start.manifest["files"].keys()
    assert start.manifest["train_state"]["best_top1"] == 5.0


@pytest.mark.parametrize("failing", range(3))
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_leaves_nothing(tmp_path, failing, caplog):
    assert save_on_ranks(tmp_path, failing=failing) == [(1, -1)] * 3
    assert not list((tmp_path / "checkpoints").iterdir())
    assert caplog.text.count(f"SAVING FAILED at step 4: rank {failing}: ") == 1


def test_a_lock_that_rank_0_lost_ends_all_ranks(tmp_path):
    def check():
        raise LockLost("taken")

    def on_rank(rank):
        saver = Saver(tmp_path, CheckpointConfig(), {}, check=check if rank == 0 else lambda: None)
        with pytest.raises(LockLost, match="taken"):
            saver.save(ENGINE, state_at(4))

    on_ranks(2, on_rank)


def test_if_rank_0_cannot_write_the_best_pointer_the_start_ends_on_all_ranks(tmp_path):
    def on_rank(rank):
        saver = Saver(tmp_path / str(rank), CheckpointConfig(), {})
        (saver.folder / ("best" if rank == 0 else "other")).mkdir(parents=True)
        manifest = {"train_state": {"best_step": 1}}
        with pytest.raises(OSError):
            saver.begin(SimpleNamespace(is_own=True, is_named=False, tag="step00000001", manifest=manifest))

    on_ranks(2, on_rank)
