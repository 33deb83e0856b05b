"""Holder of a run folder: a holder counts as dead only after silence or when Slurm says so."""

import os
import threading

import pytest

from tests.checkpoint.test_lock import acquired, locked_by
from vitkd_ds.checkpoint import holder
from vitkd_ds.checkpoint.holder import describe_this_process, is_former_self, is_found, start_time
from vitkd_ds.checkpoint.lock import LockLost, RunLock


@pytest.mark.parametrize("hidden", [
    {"pid": 2**22 + 1}, {"pid": 2**40}, {"start_time": "1"},
], ids=["a cloned machine, or another /proc", "no number", "a number that is another process's"])  # fmt: skip
def test_a_heartbeat_outweighs_a_missing_process(tmp_path, hidden):
    path = locked_by(tmp_path, **hidden)
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: stop.wait(0.1), True)])
    thread.start()
    try:
        with pytest.raises(ValueError, match="is in use by"):
            acquired(tmp_path, heartbeat_s=0.4)
    finally:
        stop.set()
        thread.join()


def test_a_process_hidden_from_proc_is_treated_like_one_on_another_machine(tmp_path, monkeypatch):
    def hidden(pid, signal):
        raise PermissionError  # the kernel's answer for another user's process, also with hidepid=2

    here, shown = describe_this_process(), start_time(os.getpid())
    monkeypatch.setattr(holder, "start_time", lambda pid: "")
    assert is_found(here | {"pid": 2**22 + 1}, here) is False
    monkeypatch.setattr(os, "kill", hidden)
    assert is_found(here, here) is None and shown


def test_process_numbers_are_not_compared_if_proc_belongs_to_another_container(monkeypatch):
    assert describe_this_process()["machine"] == describe_this_process()["machine"]
    read, here = os.readlink, describe_this_process()["machine"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "readlink", lambda path: "pid:[1]" if path == "/proc/self/ns/pid" else read(path))
        assert describe_this_process()["machine"] != here, "another container on the same boot"
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as after `unshare --pid --fork` without a new /proc
    assert describe_this_process()["machine"] != describe_this_process()["machine"]


def test_only_a_later_start_confirmed_by_slurm_takes_over_from_an_earlier_start(monkeypatch):
    def start(verified, job="12"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        monkeypatch.setenv("SLURM_RESTART_COUNT", "7")  # inherited from the job that submitted it
        monkeypatch.setenv("VITKD_DS_START", verified)
        return describe_this_process()

    first, second, inherited, other = start("12.0"), start("12.1"), start("13.1"), start("13.1", job="13")
    assert is_former_self(first, second) and not is_former_self(second, first)
    assert not any(is_former_self(first, me) for me in (inherited, other, start(""), first))
    assert not is_former_self(start("", job=""), start("", job=""))


def test_redirecting_a_link_to_the_run_folder_leaves_the_other_run_untouched(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    link = tmp_path / "run"
    link.symlink_to("mine")
    lock = acquired(link, heartbeat_s=0.05)
    link.unlink()
    link.symlink_to("other")
    with pytest.raises(LockLost, match="was replaced by another folder during the run"):
        lock.check()
    lock.released.set()
    assert not any((tmp_path / "other").iterdir())


def test_a_rank_that_sees_another_run_folder_is_rejected(tmp_path):
    lock = acquired(tmp_path / "run", stale_s=0.1)
    lock.check_is_seen(lock.me["token"])
    elsewhere = RunLock(tmp_path / "elsewhere", heartbeat_s=0.05, stale_s=0.1)
    with pytest.raises(ValueError, match="is missing or is not rank 0's lock.* on a disk that all nodes share"):
        elsewhere.check_is_seen(lock.me["token"])
    lock.release()
