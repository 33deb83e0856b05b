"""A pytest plugin that says how many tests the markers left out, also when pytest-xdist runs the others on workers."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

TARGET_OF = {"long": "make test-long", "slow": "make test-all"}
"""Marker of a costly test -> the target that runs it."""


def costly(cases: Iterable[Any]) -> list[Any]:
    """Return the cases of `parametrize` for `make test-all` alone; a tuple has the values of several arguments."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


class LeftOut:
    """The tests that a marker expression left out of this run, by the target that runs them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_deselected(self, items):
        """Count by the most costly marker."""
        for item in items:
            targets = [target for marker, target in TARGET_OF.items() if item.get_closest_marker(marker)]
            self.counts[(targets or ["other options"])[0]] += 1

    def pytest_sessionfinish(self, session):
        """Hand the counts of a worker to the process that prints."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = dict(self.counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Take the counts of a worker; all workers collect the same tests."""
        self.counts = Counter(getattr(node, "workeroutput", {}).get("left_out", self.counts))

    def pytest_terminal_summary(self, terminalreporter):
        """Print the counts."""
        for target, number in self.counts.items():
            terminalreporter.write_line(f"left out {number} tests: {target} runs them")


def pytest_configure(config):
    """Start counting."""
    config.pluginmanager.register(LeftOut(), "left out")
