"""Losses, teachers, trackers and data sources of other installed packages, found by their entry points.

An installed package names them in the groups `vitkd_ds.losses`, `vitkd_ds.teachers`, `vitkd_ds.trackers` and
`vitkd_ds.sources`. A run stores their names only, so no stored file can make a command import code.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any


def installed(kind: str) -> list[EntryPoint]:
    """Return the entry points of a kind (losses, teachers, trackers, sources) in the order of their names."""
    return sorted(entry_points(group=f"vitkd_ds.{kind}"), key=lambda point: (point.name, point.value))


def find(kind: str, name: str) -> EntryPoint | None:
    """Return the entry point of this name; None if no installed package has it."""
    return next((point for point in installed(kind) if point.name == name), None)


def described(point: EntryPoint) -> str:
    """Return name, value and group of an entry point, for a message."""
    return f"{point.name} = {point.value} in the entry points {point.group}"


def load(point: EntryPoint) -> Any:
    """Import the object of an entry point.

    Raises:
        ValueError: the import fails; the message names the entry point.
    """
    try:
        return point.load()
    except Exception as error:  # anything that another package can do wrong
        raise ValueError(
            f"{described(point)} does not load: {type(error).__name__}: {error}. Fix or remove the package."
        ) from error
