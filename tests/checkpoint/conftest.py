"""Recording of the system calls of a checkpoint."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def disk_calls(monkeypatch):
    """Return a list that records fsync, replace and rename in order: the call, the file name, and a synced file's size.
    These calls determine what a crash leaves behind."""
    seen = []

    def watch(name, describe):
        call = getattr(os, name)

        def watched(*args):
            seen.append((name, *describe(*args)))
            return call(*args)

        monkeypatch.setattr(os, name, watched)

    watch("fsync", lambda number: (Path(os.readlink(f"/proc/self/fd/{number}")).name, os.fstat(number).st_size))
    for name in ("replace", "rename"):
        watch(name, lambda old, new: (Path(new).name,))
    return seen
