"""Signals that ask a process to stop, and Ctrl-C again."""

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
def listening():
    process = subprocess.Popen([sys.executable, "-c", LISTEN], cwd=ROOT, text=True, stdout=subprocess.PIPE)
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


@pytest.mark.parametrize("name, is_urgent", [("SIGUSR1", False), ("SIGTERM", True)])
def test_slurms_warning_leaves_its_time_and_term_is_urgent_and_neither_interrupts(name, is_urgent):
    with listening() as process:
        for _ in range(2):
            process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"{name} {is_urgent}\n" and process.poll() is None
