"""The guard of os._exit: no test can end pytest, and child processes still exit normally."""

import subprocess
import sys

from tests import guard
from tests.conftest import ROOT

TESTS = """
import contextlib, os, subprocess, sys, threading

def test_exits():
    os._exit(0)

def test_hides_it():
    with contextlib.suppress(BaseException):
        os._exit(0)

def test_exits_in_a_thread():
    thread = threading.Thread(target=os._exit, args=[0])
    thread.start()
    thread.join()

def test_forked_and_started_children_exit():
    if not (child := os.fork()):
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert subprocess.run([sys.executable, "-c", "import os; os._exit(8)"]).returncode == 8
"""


def test_an_exit_fails_its_test_even_if_hidden_and_children_may_exit(request, tmp_path):
    assert request.config.pluginmanager.has_plugin(guard.OWN), "tests/conftest.py must load the guard"
    (tmp_path / "test_inner.py").write_text(TESTS)
    # A separate process, because a broken guard would end this test run.
    command = [sys.executable, "-m", "pytest", "-p", "tests.guard", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "1 failed, 3 passed" in done.stdout and "3 errors" in done.stdout, done.stdout
    assert done.stdout.count("os._exit(0) was called inside pytest") >= 3 and "test_inner.py" in done.stdout
