"""pytest plugin: append each test's name, time and result as a JSON line to the file named by VITKD_DS_RESULTS."""

import json
import os

import pytest

_seconds = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the phases of a test, and write its line after the last phase."""
    name = report.nodeid.removeprefix("tests/")
    seconds, result = _seconds.get(name, (0.0, "passed"))
    if report.outcome != "passed" and result == "passed":
        result = report.outcome
    _seconds[name] = (seconds + report.duration, result)
    if report.when == "teardown":
        with open(os.environ["VITKD_DS_RESULTS"], "a") as file:
            file.write(json.dumps([name, *_seconds.pop(name)]) + "\n")
