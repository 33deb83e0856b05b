"""A rank that makes no progress exits, and logs its position and stacks."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT, finish_ranks, start_ranks
from vitkd_ds.train import watchdog

HANGING = """
import time
from vitkd_ds.train import watchdog
watchdog.watch(limit_s=2)
for value in watchdog.each(range(6), "evaluation"):
    time.sleep(0.7)
watchdog.enter("forward", 18)
print("slow, not stuck", flush=True)
def stuck():
    {hang}
stuck()
"""
ASKED = """
import os, signal, sys, time
from vitkd_ds.train import signals, watchdog
signals.listen()
watchdog.STOPPING_LIMIT_S, watchdog.EARLY_LIMIT_S = 2, 1.5
watchdog.watch(limit_s=20)
watchdog.enter("{before}", 2)
watchdog.enter("step", 3)
watchdog.enter("{phase}", 3)
time.sleep(3)
os.kill(os.getpid(), signal.{name})
time.sleep(1)
print("a second later", flush=True)
time.sleep(4)
"""
# The main thread waits in C++, where Python runs no signal handlers.
IN_COLLECTIVE = """
import os, signal, threading
from datetime import timedelta
from torch.distributed import TCPStore
from vitkd_ds.train import signals, watchdog
signals.listen()
watchdog.STOPPING_LIMIT_S = 2
watchdog.watch(limit_s=20)
watchdog.enter("step", 2)
watchdog.enter("step", 3)
threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
store.wait(["never"], timedelta(seconds=60))
"""
EARLY = """
import os, signal, threading
from datetime import timedelta
from torch.distributed import TCPStore
from vitkd_ds.train import signals, watchdog
signals.listen()
watchdog.EARLY_LIMIT_S = 2
watchdog.watch(limit_s=20)
watchdog.leave_with(lambda: print("given back", flush=True))
watchdog.enter("{phase}")
threading.Timer(1, os.kill, (os.getpid(), signal.{name})).start()
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
try:
    store.wait(["never"], timedelta(seconds=8))
finally:
    os._exit(7)
"""
WARM, COLD = {"before": "step"}, {"before": "save"}  # only another step counts as progress
PROGRAMS = {
    "sleeping": HANGING.format(hang="time.sleep(60)"),
    "in the package": HANGING.format(hang="next(watchdog.each((time.sleep(60) for _ in '1'), 'data'))"),
    "holding the interpreter's lock": HANGING.format(hang="__import__('ctypes').PyDLL(None).sleep(15)"),
    "in a step": ASKED.format(phase="step", name="SIGTERM", **WARM),
    "in a save": ASKED.format(phase="save", name="SIGTERM", **WARM),
    "with time left": ASKED.format(phase="step", name="SIGUSR1", **WARM),
    "in the first step, which compiles": ASKED.format(phase="step", name="SIGTERM", **COLD),
    "in a collective": IN_COLLECTIVE,
}
PROGRAMS |= {f"in {phase}": EARLY.format(phase=phase, name="SIGTERM") for phase in watchdog.EARLY}
PROGRAMS |= {"in build, with time left": EARLY.format(phase="build", name="SIGUSR1")}


@pytest.fixture(scope="module")
def ended():
    """Program name to exit code, stdout and stderr. The programs mostly sleep, so they run concurrently."""
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = {name: subprocess.Popen([sys.executable, "-c", text], **options) for name, text in PROGRAMS.items()}
    said = {name: process.communicate(timeout=60) for name, process in started.items()}
    return {name: (started[name].returncode, *said[name]) for name in PROGRAMS}


def test_a_signal_is_noticed_while_the_main_thread_waits_in_a_collective(ended):
    code, _, said = ended["in a collective"]
    assert code == 1 and "SIGTERM asked to stop" in said and "SIGTERM: stopping after this step" in said


@pytest.mark.parametrize("phase", watchdog.EARLY)
def test_a_rank_that_waits_before_the_first_step_ends_with_0_soon_after_term(ended, phase):
    code, out, said = ended[f"in {phase}"]
    assert code == 0 and out == "given back\n"
    assert f"phase {phase}, after 0 updates: SIGTERM asked to stop before training started: exiting" in said
    assert ended["in build, with time left"][0] == 7, "USR1 leaves time for the ranks to agree on it"


@pytest.mark.parametrize("hang, function", [
    ("sleeping", "__main__.stuck"),
    ("in the package", "vitkd_ds.train.watchdog.each"),
    ("holding the interpreter's lock", None),  # then nobody can tell
])  # fmt: skip
def test_a_hanging_process_ends_with_its_stack_and_a_slow_one_does_not(ended, hang, function):
    code, out, err = ended[hang]
    assert code == 1 and out == "slow, not stuck\n" and "in stuck" in err
    place = f"rank 0, phase forward, after 18 updates: no progress for 2 s in {function}, line"
    assert place in err if function else "no progress" not in err, "the thread itself got the lock back first"


@pytest.mark.parametrize("where", list(PROGRAMS)[3:7])
def test_a_step_that_hangs_after_term_ends_soon_and_slow_operations_do_not(ended, where):
    code, out, err = ended[where]
    assert code == (where == "in a step") and "a second later" in out, "the clock starts with the signal"
    if code:
        assert "phase step, after 3 updates: no progress for" in err and "SIGTERM asked to stop" in err


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


def test_a_rank_that_hangs_or_raises_ends_all_and_each_logs_its_position():
    endings = ("time.sleep(60)", "raise MemoryError('tried to allocate 20 GiB')")
    started = [start_ranks(2, "-c", WAITING.format(first=first)) for first in endings]
    hanging, raising = (finish_ranks(ranks, timeout=100, codes=[1, 1]) for ranks in started)
    assert "rank 0, phase backward, after 7 updates" in hanging[0]
    assert "rank 1, phase data, after 7 updates: no progress for" in hanging[1]
    assert "phase backward, after 7 updates: another rank has ended or is unreachable" in raising[0]
    assert "Traceback" not in raising[0], "one line is enough"
    assert "rank 1, phase data, after 7 updates: out of memory: lower --micro_batch_size_per_gpu" in raising[1]
