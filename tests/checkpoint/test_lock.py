"""One job per run folder: who is rejected, who is replaced, and only one of several waiting jobs takes over."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.checkpoint.test_failing_saves import limit_file_size
from tests.conftest import ROOT, finish_ranks, start_ranks, wait_until
from vitkd_ds.checkpoint import lock
from vitkd_ds.checkpoint.holder import start_time
from vitkd_ds.checkpoint.load import TrainState
from vitkd_ds.checkpoint.lock import LockFailed, LockLost, RunLock
from vitkd_ds.checkpoint.save import Saver
from vitkd_ds.config.run import CheckpointConfig


def locked_by(workdir, **holder):
    """A lock as another process would have left it; by default from this machine, with a running holder."""
    lock = RunLock(workdir)
    workdir.mkdir(exist_ok=True)
    lock.path.write_text(json.dumps(lock.me | {"token": "other"} | holder))
    return lock.path


def acquired(workdir, **times):
    lock = RunLock(workdir, **times)
    lock.acquire()
    return lock


def test_a_second_job_is_rejected_and_told_who_holds_the_lock(tmp_path):
    first = acquired(tmp_path / "run")
    with pytest.raises(ValueError, match=f"is in use by process {os.getpid()} on "):
        RunLock(tmp_path / "run").acquire()
    first.check()
    first.release()
    assert not (tmp_path / "run").exists(), "nothing was changed"
    acquired(tmp_path).release()
    assert not any(tmp_path.iterdir())


@pytest.mark.timeout(30)
def test_a_dead_process_of_this_machine_is_replaced_after_three_missed_heartbeats(tmp_path, caplog):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for holder in ({"pid": dead.pid, "start_time": "123"}, {"start_time": "1"}):  # exited, or its number reused
        locked_by(tmp_path, **holder)
        acquired(tmp_path, heartbeat_s=0.1).release()  # without waiting for the full 60 s
    assert f"took over the lock of process {dead.pid} on " in caplog.text


@pytest.mark.slow
def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    locked_by(tmp_path, pid=process.pid, start_time=start_time(process.pid))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has exited, but its parent has not reaped it
    try:
        acquired(tmp_path).release()
    finally:
        process.wait()


def test_a_dead_jobs_claim_is_removed(tmp_path):
    locked_by(tmp_path, start_time="1").with_name(".lock.after.other").touch()
    acquired(tmp_path, heartbeat_s=0.05, stale_s=0.3).release()
    assert not any(tmp_path.iterdir())


def test_a_running_jobs_claim_is_left_alone(tmp_path):
    claim = locked_by(tmp_path, start_time="1").with_name(".lock.after.other")
    claim.touch()
    lock = RunLock(tmp_path, heartbeat_s=0.05, stale_s=60)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    time.sleep(0.5)
    assert claim.exists() and thread.is_alive()
    claim.unlink()
    thread.join()
    lock.release()


def test_a_lock_that_changes_hands_during_a_takeover_is_left_alone(tmp_path, monkeypatch):
    create, path = lock._create, locked_by(tmp_path, start_time="1")

    def slow_create(target, holder):
        create(target, holder)
        if target.name == ".lock.after.other":
            locked_by(tmp_path, token="new")  # another job was faster

    monkeypatch.setattr(lock, "_create", slow_create)
    with pytest.raises(ValueError, match="is in use by"):
        RunLock(tmp_path, heartbeat_s=0.05).acquire()
    assert json.loads(path.read_text())["token"] == "new"


HOLD = """
import sys, time
from pathlib import Path
from vitkd_ds.checkpoint.lock import RunLock
RunLock(Path(sys.argv[1]), heartbeat_s=0.05).acquire()
time.sleep(60)
"""


def test_the_holder_sends_heartbeats_and_ends_once_it_has_lost_the_lock(tmp_path):
    path, process = tmp_path / "lock", subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT)
    try:
        wait_until(path.exists, [process])
        os.utime(path, (0, 0))
        wait_until(lambda: path.stat().st_mtime > 0, [process], timeout=20)
        locked_by(tmp_path)
        assert process.wait(timeout=20) == 1 and json.loads(path.read_text())["token"] == "other"
    finally:
        process.kill()
        process.wait()


def test_a_job_on_another_host_counts_as_running_while_its_heartbeats_arrive(tmp_path):
    path = locked_by(tmp_path, machine="elsewhere", host="node7", job="12")
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: stop.wait(0.2), True)])
    thread.start()
    try:
        with pytest.raises(ValueError, match="in use by Slurm job 12, process .* on node7"):
            acquired(tmp_path, heartbeat_s=0.2, stale_s=1)
    finally:
        stop.set()
        thread.join()
    started = time.monotonic()
    acquired(tmp_path, heartbeat_s=0.2, stale_s=1)
    assert time.monotonic() - started >= 1


@pytest.mark.timeout(30)
def test_a_requeued_job_does_not_wait_for_its_earlier_start(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("VITKD_DS_START", "12.0")
    path = locked_by(tmp_path, machine="elsewhere")
    monkeypatch.setenv("VITKD_DS_START", "12.1")
    lock = acquired(tmp_path)  # without waiting for the full 60 s
    locked_by(tmp_path)
    with pytest.raises(LockLost, match="considered this job dead"):
        lock.check()
    lock.release()
    assert path.exists(), "the lock belongs to the other job by now"


DAMAGED = [b"", b"{", b"{}", b"null", b"[]", b"0", b'""', b"7", b"[1]", b'{"token": 1}', b'{"token": "a"}', b"\xff"]
DAMAGED += [b"[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, None, "a path"], ids=lambda content: str(content)[:20])
def test_a_damaged_lock_neither_blocks_nor_causes_a_needless_or_busy_wait(tmp_path, caplog, content):
    if content == "a path":
        content = json.dumps(RunLock(tmp_path).me | {"token": "../../x"}).encode()
    if content is None:
        (tmp_path / "lock").symlink_to("nowhere")
    else:
        (tmp_path / "lock").write_bytes(content)
    started, worked = time.monotonic(), time.thread_time()
    acquired(tmp_path, heartbeat_s=0.1, stale_s=0.3).release()
    assert time.monotonic() - started >= 0.3 and time.thread_time() - worked < 0.2
    assert "took over the lock of an unknown job, whose lock file is damaged" in caplog.text


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("{}")])
def test_a_lock_changed_by_others_is_rewritten_and_a_second_job_is_rejected(tmp_path, caplog, change):
    lock = acquired(tmp_path, heartbeat_s=0.05)
    for look in (lambda: time.sleep(0.5), lock.check):  # detected by the heartbeat, or before a save
        change(lock.path)
        look()
        with pytest.raises(ValueError, match="is in use by"):
            RunLock(tmp_path).acquire()
        assert "which was deleted or damaged while this job held it" in caplog.text
        caplog.clear()
    lock.release()
    assert not any(tmp_path.iterdir())


def test_a_deleted_run_folder_is_not_recreated(tmp_path):
    lock = acquired(tmp_path / "run", heartbeat_s=0.05)
    shutil.rmtree(tmp_path / "run")
    time.sleep(0.2)
    saver = Saver(tmp_path / "run", CheckpointConfig(), {}, check=lock.check)
    with pytest.raises(LockLost, match="run was removed during the run"):
        saver.save(None, TrainState(7, 1))
    lock.release()
    assert not (tmp_path / "run").exists()


RACE = """
import sys
from pathlib import Path
from vitkd_ds.checkpoint.lock import RunLock
lock = RunLock(Path(sys.argv[1]), heartbeat_s=0.2, stale_s=2)
sys.stdin.readline()
try:
    lock.acquire()
    print("got it", flush=True)
except ValueError:
    print("refused", flush=True)
sys.stdin.readline()"""


@pytest.mark.slow
def test_only_one_of_many_jobs_takes_over(tmp_path):
    command, pipes = [sys.executable, "-c", RACE, tmp_path], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    for _ in range(5):
        locked_by(tmp_path, pid=2**22 + 1)
        jobs = [subprocess.Popen(command, **pipes, text=True, cwd=ROOT, bufsize=1) for _ in range(5)]
        for job in jobs:
            job.stdin.write("\n")
        answers = [job.stdout.readline().strip() for job in jobs]
        for job in jobs:
            job.communicate("\n", timeout=30)
        assert sorted(answers) == ["got it"] + ["refused"] * 4


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a small disk and fills it with bytes, fills it with files, or makes it read-only."""
    mounted = []

    def mount(kind):
        place = tmp_path / kind
        place.mkdir()
        options = {"full": "size=16k", "no more files": "nr_inodes=3", "read-only": "size=16k", "good": "size=1m"}[kind]
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True).returncode:
            pytest.skip("a disk can be mounted by root alone")
        mounted.append(place)
        (place / "used").mkdir()
        if kind == "full":
            with pytest.raises(OSError, match="No space left"):
                (place / "filler").write_bytes(bytes(2**20))
        elif kind == "no more files":
            (place / "filler").touch()
        elif kind == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def refused_for_want_of(error, workdir):
    was_there = workdir.exists()
    with pytest.raises(LockFailed, match=f"cannot write '{workdir}/lock': .*{error}.* Free"):
        acquired(workdir)
    assert not any(workdir.iterdir()) if was_there else not workdir.exists(), "nothing is left behind"


@pytest.mark.parametrize("kind, error", [
    ("full", "No space left"), ("no more files", "No space left"), ("read-only", "Read-only file system"),
])  # fmt: skip
def test_an_unwritable_disk_gives_a_clear_error_and_nothing_is_left_on_it(disk, kind, error):
    place = disk(kind)
    for workdir in (place / "runs" / "new", place / "used"):
        refused_for_want_of(error, workdir)


def test_a_disk_that_becomes_read_only_hides_no_error_of_the_run(disk, caplog):
    place = disk("good")
    lock = acquired(place / "run")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    lock.release()
    assert f"cannot remove {place}/run/lock: [Errno 30] Read-only file system" in caplog.text


def test_a_truncated_lock_is_removed(tmp_path):
    try:
        limit_file_size(0)
        refused_for_want_of("File too large", tmp_path / "runs" / "new")
    finally:
        limit_file_size(-1)
    acquired(tmp_path / "runs" / "new").release()


def test_training_on_a_full_disk_ends_with_code_1_and_one_line_per_rank(disk, demo_cache):
    workdir = disk("full") / "run"
    command = ("train.py", "--recipe=demo_plain", "--debug", f"--workdir={workdir}")
    for said in finish_ranks(start_ranks(2, *command), codes=[1, 1]):
        assert f"LockFailed: cannot write '{workdir}/lock': " in said, said
        assert "Traceback" not in said
    assert not workdir.exists()
