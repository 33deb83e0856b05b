"""Entry points that add losses, teachers, trackers and data sources from other installed packages.

The groups are `vitkd_ds.losses`, `vitkd_ds.teachers`, `vitkd_ds.trackers` and `vitkd_ds.sources`. A run stores only
their names, so no stored file can make a command import code.
"""

from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from keyword import iskeyword
from typing import Any

from vitkd_ds.config.term import Term


def installed(kind: str) -> list[EntryPoint]:
    """Return the entry points of a kind (losses, teachers, trackers, sources), sorted by name."""
    return sorted(entry_points(group=f"vitkd_ds.{kind}"), key=lambda point: (point.name, point.value))


def find(kind: str, name: str) -> EntryPoint | None:
    """Return the entry point with this name, or None if no installed package has it."""
    return next((point for point in installed(kind) if point.name == name), None)


def described(point: EntryPoint) -> str:
    """Return the name, value and group of an entry point as text for a message."""
    return f"{point.name} = {point.value} in the entry points {point.group}"


def load(point: EntryPoint) -> Any:
    """Import the object of an entry point.

    Raises:
        ValueError: the import fails; the message names the entry point.
    """
    try:
        return point.load()
    except Exception as error:  # importing foreign code may raise anything
        raise ValueError(
            f"{described(point)} does not load: {type(error).__name__}: {error}. Fix or remove the package."
        ) from error


def find_terms(taken: Collection[str]) -> tuple[dict[str, type[Term]], list[str]]:
    """Return the loss terms of other installed packages by name, and a list of error messages for invalid terms.

    Args:
        taken: names that these terms must not have.
    """
    terms: dict[str, type[Term]] = {}
    problems = []
    # Sorted by name, because this order determines the order of the parameters, which must be the same on every node
    # and at every launch.
    for point in installed("losses"):
        where = described(point)
        if point.name in (*taken, *terms) or not point.name.isidentifier() or iskeyword(point.name):
            problems.append(f"the name of loss {where} is taken or invalid. Rename it.")
            continue
        try:
            term = point.load()
            if not (isinstance(term, type) and issubclass(term, Term)):
                raise TypeError(f"{term!r} is not a dataclass derived from vitkd_ds.config.term.Term")
            term()
        except Exception as error:  # foreign code may raise anything
            problems.append(
                f"loss {where} does not load with its defaults: {type(error).__name__}: {error}. Fix or remove the "
                "package."
            )
            continue
        terms[point.name] = term
    return terms, problems
