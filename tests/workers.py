"""pytest plugin: group tests on workers of pytest-xdist, so that costly fixtures are built once.

Tests of a file stay together, and so do files that use the same costly session fixture. The groups of pytest-xdist 3.8
have no effect with pytest 9.2.
"""

import re
from pathlib import Path

import pytest

COSTLY = re.compile(r"\b(observed|whole_run)\b")
"""Session fixtures of tests/conftest.py that start processes."""
FOLDERS = ("tests/commands/compare", "tests/commands/report")
"""Folders whose tests share a costly fixture."""


def group_of(file: str) -> str:
    """Return the group of a test file, given by its path from the project's root."""
    for folder in FOLDERS:
        if file.startswith(folder):
            return folder
    return "ranks" if COSTLY.search((Path(__file__).parents[1] / file).read_text()) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Schedule whole groups instead of whole files."""
    from xdist.scheduler import LoadFileScheduling

    class Groups(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return Groups(config, log)
