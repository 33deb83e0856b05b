"""Deliberate mistakes in the package, as data: `make mistakes` puts in one at a time, and a test must fail.

Each module here lists mistakes in `MISTAKES`: a file of the package, the qualified name of a function or class in it
("" for the module), and "old => new" with the test under tests/ that must fail. Old and new are patterns of
`change.py`. In place of the test, a pair also gives the reason why a mistake is known to survive.
"""

from importlib import import_module
from typing import NamedTuple

from tests.mistakes.change import ARROW

LISTS = (
    "losses",
    "models",
    "data",
    "sources",
    "ranks",
    "augment",
    "engine",
    "checkpoint",
    "train",
    "evaluation",
    "config",
    "commands",
)


class Mistake(NamedTuple):
    """One mistake."""

    file: str
    """Below vitkd_ds/."""
    where: str
    """Qualified name of the function or class; "" for the module."""
    old: str
    new: str
    test: str
    """Below tests/, as pytest takes it."""
    reason: str = ""
    """Why it survives; "" for one that must be caught."""


def all_mistakes() -> list[Mistake]:
    """Every mistake of every list."""
    found = []
    for name in LISTS:
        for file, places in import_module(f"tests.mistakes.{name}").MISTAKES.items():
            for where, changes in places.items():
                for change, test in changes.items():
                    old, _, new = change.partition(ARROW)
                    said = (test,) if isinstance(test, str) else test
                    found.append(Mistake(file, where, old, new.strip(), *said))
    return found
