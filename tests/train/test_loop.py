"""The loop and the lock of its run folder: every rank must see it, and a job that has lost it publishes nothing."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.conftest import finish_ranks, start_ranks
from tests.threaded import on_ranks
from vitkd_ds.checkpoint.lock import LockLost, RunLock
from vitkd_ds.cli import parse_run
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.recipes import build_run
from vitkd_ds.train import loop

FLAGS = {"recipe": "demo_plain", "debug": "true", "max_steps": "1", "global_batch_size": "8"}
FLAGS |= {"data.max_val_images": "8"}


@pytest.fixture
def started(monkeypatch):
    """The arguments from `train` to `train_from` on each rank, on threads with an existing process group."""
    given = []
    monkeypatch.setattr(loop, "start_processes", lambda timeout: torch.device("cpu"))
    monkeypatch.setattr(loop, "set_rank_variables", lambda: None)
    monkeypatch.setattr(loop.watchdog, "watch", lambda limit_s: None)
    monkeypatch.setattr(loop.watchdog, "leave_with", lambda function: None)
    monkeypatch.setattr(loop, "train_from", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(loop, "RunLock", partial(RunLock, stale_s=0.1))
    return given


def train_in(*folders):
    """Train on one rank per folder, each used as its run folder. Return each rank's error."""
    run = build_run("demo")

    def on_rank(rank):
        try:
            loop.train(replace(run, workdir=str(folders[rank])))
        except Exception as error:
            return error

    return on_ranks(len(folders), on_rank)


def test_only_rank_0_locks_and_all_ranks_start_with_that_lock(tmp_path, started):
    assert train_in(*[tmp_path / "run"] * 3) == [None] * 3
    assert len(started) == 3
    assert not (tmp_path / "run").exists(), "the lock and its folder are released"


def test_a_rank_that_does_not_see_the_lock_of_rank_0_ends_all_before_anything_is_built(tmp_path, started):
    (tmp_path / "other disk").mkdir()
    first, second = train_in(tmp_path / "run", tmp_path / "other disk")
    assert "is missing or is not rank 0's lock" in str(second)
    assert isinstance(first, ValueError) and str(second) in str(first)
    assert not started


def test_a_run_folder_in_use_is_rejected_on_all_ranks(tmp_path, started):
    lock = RunLock(tmp_path / "run")
    lock.acquire()
    try:
        first, second = train_in(*[tmp_path / "run"] * 2)
    finally:
        lock.release()
    assert isinstance(first, ValueError) and "is in use by" in str(first)
    assert type(second) is type(first) and str(second) == str(first)
    assert not started


def steal(workdir):
    """Put another job's lock into a run folder."""
    other = RunLock(workdir)
    (workdir / "lock").write_text(json.dumps(other.me))


def stolen_before(name, run):
    """Train with a lock that another job takes just before a loop function is called; return the error's name."""
    owner = OWNERS[name]
    function = getattr(owner, name)

    def after_theft(*arguments, **options):
        steal(Path(run.workdir))
        return function(*arguments, **options)

    setattr(owner, name, after_theft)
    try:
        loop.train(run)
    except LockLost as error:
        return str(error)
    finally:
        setattr(owner, name, function)
    return ""


def main(folder):
    start_processes()
    torch.set_num_threads(1)
    loop.RunLock = partial(RunLock, heartbeat_s=600)  # the first heartbeat would end this process
    said = {name: stolen_before(name, parse_run((), FLAGS | {"workdir": str(folder / name)})) for name in OWNERS}
    (folder / "said.json").write_text(json.dumps(said))
    leave()


OWNERS = {"save": loop.Session, "finish": loop}


def test_a_job_whose_folder_was_taken_saves_no_checkpoint_and_writes_no_result(tmp_path, demo_cache):
    finish_ranks(start_ranks(1, "-m", __name__, tmp_path))
    said = json.loads((tmp_path / "said.json").read_text())
    for name in OWNERS:
        assert "considered this job dead and took" in said[name]
        assert not (tmp_path / name / "done").exists() and not (tmp_path / name / "student.json").exists()
    assert not list((tmp_path / "save").glob("checkpoints/step*"))
    assert list((tmp_path / "finish").glob("checkpoints/step*"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
