"""The system calls behind a checkpoint."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def disk_calls(monkeypatch):
    """What decides what a crash leaves, in order: the call, the name that it is for, and the bytes of a synced file."""
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
