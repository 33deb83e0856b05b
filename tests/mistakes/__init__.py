"""Deliberate mistakes in the package, as data: `make mistakes` puts in one at a time, and a test must fail.

Each module here lists those of a room in `MISTAKES`: a file of the package -> (old text, which stands once in the file;
new text; the test under tests/ that must fail). A fourth element says why a mistake is known to survive.
"""

from importlib import import_module
from typing import NamedTuple

ROOMS = ("losses", "models", "data", "engine", "checkpoint", "train", "config", "commands")


class Mistake(NamedTuple):
    """One mistake."""

    file: str
    """Below vitkd_ds/."""
    old: str
    new: str
    test: str
    """Below tests/, as pytest takes it."""
    reason: str = ""
    """Why it survives; "" for one that must be caught."""


def all_mistakes() -> list[Mistake]:
    """Every mistake of every room."""
    found = []
    for room in ROOMS:
        for file, rows in import_module(f"tests.mistakes.{room}").MISTAKES.items():
            found += [Mistake(file, *row) for row in rows]
    return found
