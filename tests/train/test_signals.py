"""Signals that ask a process to stop, and a second Ctrl-C."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.conftest import ROOT

LISTEN = """
import time
from vitkd_ds.train import signals
signals.listen()
print("listening", flush=True)
while not signals.received():
    time.sleep(0.01)
print(signals.received(), signals.urged_at() is not None, flush=True)
time.sleep(60)
"""


@contextmanager
def listening(*before):
    process = subprocess.Popen([*before, sys.executable, "-c", LISTEN], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == "listening\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_asks_once_and_interrupts_the_second_time():
    with listening() as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "SIGINT True\n" and process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == -signal.SIGINT


@pytest.mark.parametrize("name, is_urgent", [("SIGUSR1", False), ("SIGTERM", True), ("SIGHUP", True)])
def test_slurms_warning_signal_leaves_time_term_is_urgent_and_neither_interrupts(name, is_urgent):
    with listening() as process:
        for _ in range(2):
            process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"{name} {is_urgent}\n" and process.poll() is None


def test_with_nohup_a_run_ignores_its_terminals_hangup():
    with listening("nohup") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1 False\n"


@pytest.mark.parametrize("first, second", [
    ("deepspeed", "deepspeed.launcher.launch"), ("torch.distributed.launch", "torchrun"),
])  # fmt: skip
def test_the_exit_of_an_outer_launcher_asks_the_ranks_to_stop(tmp_path, first, second):
    """As with `deepspeed`: its first process dies on TERM and leaves the second process and the ranks running."""
    inner = tmp_path / second
    inner.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {LISTEN!r}])")
    outer = tmp_path / first
    outer.write_text(f"import subprocess, sys; subprocess.run([sys.executable, '-u', {str(inner)!r}])")
    options = {"cwd": ROOT, "text": True, "stdout": subprocess.PIPE, "start_new_session": True}
    process = subprocess.Popen([sys.executable, outer, "train.py"], **options)
    try:
        assert process.stdout.readline() == "listening\n"
        process.terminate()
        assert process.stdout.readline() == "the launcher's end True\n"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
