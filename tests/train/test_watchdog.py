"""A rank that makes no progress ends, with its place and its stacks."""

import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT, finish_ranks, start_ranks

HANGS = {
    "sleeping": "time.sleep(60)",
    "holding the interpreter's lock": "__import__('ctypes').PyDLL(None).sleep(60)",
}
SCRIPT = """
import time
from vitkd_ds.train import watchdog
watchdog.watch(limit_s=2)
for value in watchdog.each(range(6), "evaluation"):
    time.sleep(0.7)
watchdog.enter("forward", 18)
def stuck():
    {hang}
stuck()
"""


@pytest.mark.parametrize("hang", HANGS)
def test_a_hanging_process_ends_with_its_stack_and_a_slow_one_does_not(hang):
    started = time.monotonic()
    command = [sys.executable, "-c", SCRIPT.format(hang=HANGS[hang])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "in stuck" in done.stderr
    assert 4 < time.monotonic() - started < 12
    if hang == "sleeping":
        assert "rank 0, phase forward, after 18 updates: no progress for 2 s in __main__.stuck, line" in done.stderr


ASKED = """
import os, signal, sys, time
from vitkd_ds.train import signals, watchdog
signals.listen()
watchdog.STOPPING_LIMIT_S = 2
watchdog.watch(limit_s=20)
if {is_warm}:
    watchdog.enter("step", 2)
watchdog.enter("{phase}", 3)
time.sleep(3)
os.kill(os.getpid(), signal.{name})
time.sleep(1)
print("a second later", flush=True)
time.sleep(4)
"""


@pytest.mark.parametrize(
    "phase, name, is_warm, ends",
    [("step", "SIGTERM", True, True), ("save", "SIGTERM", True, False), ("step", "SIGUSR1", True, False),
     ("step", "SIGTERM", False, False)],
    ids=["in a step", "in a save", "with time left", "in the first step, which compiles"],
)  # fmt: skip
def test_a_step_that_hangs_after_term_ends_soon_and_what_may_take_long_does_not(phase, name, is_warm, ends):
    command = [sys.executable, "-c", ASKED.format(phase=phase, name=name, is_warm=is_warm)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == ends and "a second later" in done.stdout, "the clock starts with the signal"
    if ends:
        assert "phase step, after 3 updates: no progress for" in done.stderr
        assert "SIGTERM asked to stop" in done.stderr


WAITING = """
import os, sys, time, torch
from vitkd_ds.engine import processes, ranks
from vitkd_ds.train import watchdog
processes.start_processes()
watchdog.watch(limit_s=3)
watchdog.enter("data", 7)
try:
    if ranks.rank() == 1:
        {first}
    watchdog.enter("backward")
    ranks.sum_over_ranks(torch.ones(1))
except BaseException as error:
    watchdog.report(error)
    os._exit(1)
"""


def test_a_hanging_rank_ends_all_and_each_says_where_it_was(tmp_path):
    outputs = finish_ranks(start_ranks(2, "-c", WAITING.format(first="time.sleep(60)")), timeout=60, codes=[1, 1])
    assert "rank 0, phase backward, after 7 updates" in outputs[0]
    assert "rank 1, phase data, after 7 updates: no progress for" in outputs[1]


def test_the_others_of_a_rank_that_raises_say_in_one_line_that_another_ended(tmp_path):
    first = "raise MemoryError('tried to allocate 20 GiB')"
    outputs = finish_ranks(start_ranks(2, "-c", WAITING.format(first=first)), timeout=60, codes=[1, 1])
    assert "phase backward, after 7 updates: another rank ended, or cannot be reached" in outputs[0]
    assert "Traceback" not in outputs[0]
    assert "rank 1, phase data, after 7 updates: out of memory: lower --micro_batch_size_per_gpu" in outputs[1]
