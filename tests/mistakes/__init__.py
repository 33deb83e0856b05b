"""Deliberate mistakes in the package. `make mistakes` applies one at a time; a test must fail each time.

Each module here lists mistakes in `MISTAKES`: a file of the package, the qualified name of a function or class in it
("" for the module), and "old => new" with the test under tests/ that must fail. `old` and `new` are patterns of
`change.py`. A pair of test and reason marks a mistake that is known to survive.
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
    "image_sizes",
)


class Mistake(NamedTuple):
    """A deliberate mistake."""

    file: str
    """Path relative to vitkd_ds/."""
    where: str
    """Qualified name of the function or class; "" for the module."""
    old: str
    new: str
    test: str
    """Test that must fail, as a pytest name relative to tests/."""
    reason: str = ""
    """Reason why the mistake survives; "" if it must be caught."""


def all_mistakes() -> list[Mistake]:
    """Return the mistakes of all lists."""
    found = []
    for name in LISTS:
        for file, places in import_module(f"tests.mistakes.{name}").MISTAKES.items():
            for where, changes in places.items():
                for change, test in changes.items():
                    old, _, new = change.partition(ARROW)
                    said = (test,) if isinstance(test, str) else test
                    found.append(Mistake(file, where, old, new.strip(), *said))
    return found
