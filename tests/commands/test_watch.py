"""Watching a run by its folder: messages while a job runs, dies, resumes, and finishes."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.conftest import (
    ROOT,
    everything_on,
    finish_ranks,
    metrics_of,
    run_command,
    start_ranks,
    wait_for_steps,
    wait_until,
)
from vitkd_ds.checkpoint.lock import RunLock
from vitkd_ds.commands import watch
from vitkd_ds.commands.ending import ending
from vitkd_ds.train import console

CONFIG = {"plan": {"total_steps": 30}}


class Watched:
    """A run folder made by hand, and the output of `watch` on it, running in a thread."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.said, self.summary = folder, [], None
        monkeypatch.setattr(watch, "LOOK_EVERY_S", 0.01)
        monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
        folder.mkdir()
        self.write("config.json", CONFIG)
        self.handler = logging.Handler()
        self.handler.emit = lambda record: self.said.append(record.getMessage())
        logging.getLogger("vitkd_ds").addHandler(self.handler)
        logging.getLogger("vitkd_ds").setLevel(logging.INFO)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        self.summary = watch.watch(str(self.folder))

    def write(self, name, content):
        """Write the file atomically, as a run does."""
        (self.folder / ".new").write_text(json.dumps(content))
        (self.folder / ".new").replace(self.folder / name)

    def log(self, *lines, anew=False):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if anew:
            (self.folder / ".anew").write_text(text)
            (self.folder / ".anew").replace(self.folder / "metrics.jsonl")
            return
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(text)

    def until(self, text):
        for _ in range(1000):
            if any(text in line for line in [*self.said]):
                return
            self.thread.join(0.01)
        pytest.fail(f"{text!r} was not said, but {self.said}")


@pytest.fixture
def watched(tmp_path, monkeypatch):
    made = Watched(tmp_path / "run", monkeypatch)
    yield made
    (made.folder / "summary.json").write_text("{}")
    (made.folder / "done").touch()
    made.thread.join(10)
    logging.getLogger("vitkd_ds").removeHandler(made.handler)


def step(number, **values):
    return {"step": number, "total": 0.5, "images_per_s": 100.0, "s_per_step": 2.0} | values


def test_steps_and_evaluations_match_the_runs_own_log_and_watching_ends_with_the_run(watched):
    watched.until(f"no job is training {watched.folder}; waiting for it to be resumed")
    lock = RunLock(watched.folder)
    lock.acquire()
    watched.until(f"process {os.getpid()} on ")
    watched.log({"step": 0, "val_num_images": 64.0, "val_top1": 10.0})
    watched.until("step 0/30  val_num_images 64  val_top1 10")
    watched.log(step(10), {"step": 10, "val_num_images": 64.0, "val_top1": 12.5, "val_cka": None})
    watched.until("step 10/30  100 images/s  eta 0:00:40  total 0.5")
    watched.until("step 10/30  val_num_images 64  val_top1 12.5")
    with (watched.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "tot')  # a line still being written
        file.flush()
        watched.thread.join(0.1)
        file.write('al": 0.25}\n')
    watched.until("step 20/30  total 0.25")
    watched.write("summary.json", {"student_top1": 50.0})
    watched.log(step(30), {"step": 30, "val_num_images": 64.0, "val_top1": 50.0})
    lock.release()
    (watched.folder / "done").touch()
    watched.thread.join(10)
    assert watched.summary == {"student_top1": 50.0}
    assert "step 30/30  val_num_images 64  val_top1 50" in watched.said


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def test_on_a_terminal_the_bar_shows_the_newest_step_and_the_total(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name, content in {"config.json": CONFIG, "summary.json": {"steps": 20}, "metrics.jsonl": step(20)}.items():
        (tmp_path / name).write_text(json.dumps(content) + "\n")
    (tmp_path / "done").touch()
    assert watch.watch(str(tmp_path)) == {"steps": 20}
    *_, bar = sys.stderr.getvalue().strip().splitlines()
    assert "20/30" in bar and "total 0.5" in bar


def test_a_resumed_run_is_followed_and_each_evaluation_is_shown_once(watched):
    evaluated = {"step": 10, "val_num_images": 64.0, "val_top1": 12.5}
    watched.log(step(10), evaluated, step(15))
    watched.until("step 15/30")
    past = [line for line in watched.said if line.startswith("step")]
    assert [line.split()[1] for line in past] == ["10/30", "15/30"], "the past in its order"
    watched.log(step(10), evaluated, step(15), anew=True)
    watched.thread.join(0.1)
    assert [line for line in watched.said if line.startswith("step")] == past, "nothing is shown twice"
    watched.write("config.json", {"plan": {"total_steps": 60}})
    watched.log(step(10), evaluated, step(12), anew=True)
    watched.until("step 12/60")
    watched.log(step(20), {"step": 20, "val_num_images": 64.0, "val_top1": 25.0})
    watched.until("step 20/60  val_num_images 64  val_top1 25")
    assert sum("val_top1 12.5" in line for line in watched.said) == 1


@pytest.mark.parametrize(
    "holder, silent_s, said",
    [
        ({"pid": 2**22 + 7}, 0, "has exited or lost contact before"),
        ({"machine": "another"}, 0, " is training "),
        ({"machine": "another"}, 90, "has exited or lost contact before"),
    ],
)
def test_a_silent_job_is_distinguished_from_a_running_one(watched, holder, silent_s, said):
    lock = RunLock(watched.folder)
    (watched.folder / ".lock").write_text(json.dumps(lock.me | holder))
    seconds = (watched.folder / ".lock").stat().st_mtime - silent_s
    os.utime(watched.folder / ".lock", (seconds, seconds))
    (watched.folder / ".lock").replace(watched.folder / "lock")
    watched.until(said)
    assert not any("is gone" in line for line in watched.said) or "gone" in said


def test_a_path_that_is_not_a_run_is_rejected_and_a_finished_run_ends_at_once(whole_run, tmp_path):
    (tmp_path / "photo.jpg").touch()
    done = run_command("vitkd-ds", "watch", tmp_path, check=False)
    assert done.returncode == 2 and f"{tmp_path} is not a run folder: it has no config.json. Pass the" in done.stderr
    done = run_command("vitkd-ds", "watch", whole_run)
    assert done.stdout == f"{ending(whole_run)}\n" and "step 30/30  val_num_images 64" in done.stderr


def test_a_run_that_is_just_starting_is_waited_for(watched):
    folder = watched.folder.parent / "later"
    summaries = []
    waiting = threading.Thread(target=lambda: summaries.append(watch.watch(str(folder))))
    waiting.start()
    watched.until(f"no run in {folder} yet; waiting for it to start")
    folder.mkdir()
    waiting.join(0.05)
    lock = RunLock(folder)
    lock.acquire()
    waiting.join(0.05)
    for name, content in {"config.json": CONFIG, "summary.json": {"steps": 30}}.items():
        (folder / f".{name}").write_text(json.dumps(content))
        (folder / f".{name}").replace(folder / name)
    watched.until(f"process {os.getpid()} on ")
    (folder / "done").touch()
    waiting.join(10)
    lock.release()
    assert summaries == [{"steps": 30}] and sum("no run in" in line for line in watched.said) == 1


@pytest.mark.long
def test_a_real_run_is_watched_through_a_kill_to_its_end(small_beton, tmp_path, demo_cache):
    workdir = tmp_path / "run"
    command = ("train.py", *everything_on(workdir, small_beton))
    ranks = start_ranks(1, *command)
    wait_for_steps(ranks, workdir, 6)
    environ = os.environ | {"PYTHONPATH": str(ROOT), "RANK": "0"}
    words = [sys.executable, "-m", "vitkd_ds", "watch", str(workdir)]
    with (tmp_path / "errors").open("w") as errors, (tmp_path / "said").open("w") as said:
        watching = subprocess.Popen(words, env=environ, stdout=said, stderr=errors)
    wait_until(lambda: " is training " in (tmp_path / "errors").read_text(), [watching])
    ranks[0].send_signal(signal.SIGKILL)
    ranks[0].communicate()
    wait_until(lambda: "has exited or lost contact" in (tmp_path / "errors").read_text(), [watching])
    finish_ranks(start_ranks(1, *command))
    assert watching.wait(60) == 0 and "% top-1 on 64 images" in (tmp_path / "said").read_text()
    errors = (tmp_path / "errors").read_text()
    assert errors.count("val_top1") == sum("val_top1" in line for line in metrics_of(workdir))


@pytest.mark.cold
def test_watch_does_not_import_torch():
    code = "import sys, vitkd_ds.commands.watch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
