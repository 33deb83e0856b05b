"""Saving, on one rank: in which order what reaches the disk, and what is published when something fails."""

import json
import re
from types import SimpleNamespace

import pytest
import torch

from vitkd_ds.checkpoint.load import TrainState, find, newest_whole
from vitkd_ds.checkpoint.lock import LockLost
from vitkd_ds.checkpoint.save import SaveError, Saver
from vitkd_ds.config.run import CheckpointConfig

ENGINE = SimpleNamespace(
    layout={"world_size": 1}, student_weights=lambda: {"w": torch.ones(2)},
    state_files=lambda: {"state.pt": {"x": torch.arange(3)}},
)  # fmt: skip


def state_at(step, **values):
    return TrainState(steps_per_epoch=7, data=1, step=step, **values)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name_and_named_before_latest_names_it(tmp_path, disk_calls):
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
    assert seen[0] == [] and len(seen) == 1 + 2 * passed
    assert not passed or "manifest.json" in seen[1], "the last look comes when all is written"
    assert not any(tmp_path.rglob("step*")) and not any(tmp_path.rglob("latest"))


def test_a_lock_that_cannot_be_read_for_a_moment_costs_a_checkpoint_and_not_the_run(tmp_path, caplog):
    looks = iter([OSError("stale"), None, None, None])

    def check():
        if error := next(looks):
            raise error

    saver = Saver(tmp_path, CheckpointConfig(max_failures=2), {}, check=check)
    saver.save(ENGINE, state_at(4))
    assert "SAVING FAILED at step 4: rank 0: OSError('stale')" in caplog.text and not any(tmp_path.rglob("step*"))
    saver.save(ENGINE, state_at(5))
    assert (saver.folder / "latest").read_text() == "step00000005" and saver.num_failures == 0


def test_a_failure_at_the_last_chance_ends_the_run_and_others_do_only_in_a_row(tmp_path, caplog):
    saver = Saver(tmp_path / "run", CheckpointConfig(max_failures=2), {})
    good, bad = saver.folder, tmp_path / "file" / "checkpoints"
    (tmp_path / "file").touch()
    for saver.folder in (bad, good, bad):
        saver.save(ENGINE, state_at(4))
    assert caplog.text.count("Training goes on; failure 1, at 2 in a row it stops") == 2
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
def test_a_run_that_turns_back_has_the_best_of_before(tmp_path, resume):
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
        assert not best.exists(), "nothing was evaluated by then"


def test_an_evaluation_follows_into_its_own_checkpoint(tmp_path, caplog):
    saver, state = Saver(tmp_path, CheckpointConfig(), {}), state_at(4)
    saver.save(ENGINE, state)
    state.result, state.result_step, state.best_step = {"top1": 50.0}, 4, 4
    saver.note(state)
    manifest = json.loads((saver.folder / "step00000004" / "manifest.json").read_text())
    assert manifest["train_state"]["result"] == {"top1": 50.0} and manifest["layout"] == ENGINE.layout
    assert (saver.folder / "best").read_text() == "step00000004"
    saver.note(state_at(5, result={"top1": 60.0}))
    assert not caplog.text, "of another step nothing is written"
