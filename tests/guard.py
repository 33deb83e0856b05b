"""pytest plugin: calling os._exit inside pytest's own process fails the test instead of ending the run.

`vitkd_ds` leaves its processes by os._exit. If code under test called it inside pytest by mistake, an unfinished test
run could look successful.
"""

import os
import sys
import traceback

import pytest

OWN = "guard of os._exit"


class Guard:
    """Replacement of os._exit for the process that creates it; child processes, forked ones too, still exit."""

    def __init__(self) -> None:
        self.process, self.real, self.exits = os.getpid(), os._exit, []

    def exit(self, code: int) -> None:
        """Record the call and fail the test; replaces os._exit."""
        caller = sys._getframe(1).f_globals.get("__name__")
        if os.getpid() != self.process or caller == "pytest_timeout":
            self.real(code)
        self.exits.append(f"os._exit({code}) was called inside pytest:\n" + "".join(traceback.format_stack()[-6:-1]))
        pytest.fail(self.exits[-1], pytrace=False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self):
        """Fail a test whose code caught the failure or called os._exit in a thread."""
        yield
        if exits := "\n".join(self.exits):
            self.exits.clear()
            pytest.fail(exits, pytrace=False)

    def pytest_sessionfinish(self, session):
        """Fail the run for a call after the last test."""
        if self.exits:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_unconfigure(self):
        """Restore os._exit."""
        os._exit = self.real


def pytest_configure(config):
    """Install the guard before tests are collected."""
    guard = Guard()
    config.pluginmanager.register(guard, OWN)
    os._exit = guard.exit
