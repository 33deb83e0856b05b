"""pytest plugin: report how many tests were deselected and which make target runs them, also with pytest-xdist."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

TARGET_OF = {"long": "make test-long", "slow": "make test-all"}
"""Marker of a costly test to the make target that runs it."""


def costly(cases: Iterable[Any]) -> list[Any]:
    """Mark cases of `parametrize` as slow, so that only `make test-all` runs them; a tuple is one case."""
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow) for case in cases]


class LeftOut:
    """Counts of deselected tests per make target that runs them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def pytest_deselected(self, items):
        """Count the deselected tests by their most costly marker."""
        for item in items:
            targets = [target for marker, target in TARGET_OF.items() if item.get_closest_marker(marker)]
            self.counts[(targets or ["other options"])[0]] += 1

    def pytest_sessionfinish(self, session):
        """Send a worker's counts to the process that prints."""
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left_out"] = dict(self.counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Take a worker's counts; all workers collect the same tests."""
        self.counts = Counter(getattr(node, "workeroutput", {}).get("left_out", self.counts))

    def pytest_terminal_summary(self, terminalreporter):
        """Print the counts."""
        for target, number in self.counts.items():
            terminalreporter.write_line(f"deselected {number} tests; run them with {target}")


def pytest_configure(config):
    """Start counting."""
    config.pluginmanager.register(LeftOut(), "left out")
