"""Report of mutants: kill rates per top-level folder ("room") with intervals, and the survivors."""

from collections.abc import Sequence
from typing import NamedTuple

from tests.mistakes.change import ARROW
from tests.mutants.draw import Mutant, diff_of
from tests.mutants.equivalent import EQUIVALENT
from vitkd_ds.train.statistics import wilson_interval

MOST_EQUIVALENT = 0.1
"""Maximum fraction of the drawn mutants that may be listed as equivalent."""
TARGETS = ("test", "test-all")
"""Makefile targets, the faster one first."""


class Tried(NamedTuple):
    """A mutant and its result."""

    mutant: Mutant
    target: str
    """First target that kills the mutant; "" for a survivor."""
    by: str
    """Test that failed."""
    seconds: float
    num_tests: int


def reason_of(mutant: Mutant) -> str:
    """Return why a mutant is listed as equivalent, or "" if it is not listed."""
    change = f"{mutant.old}{ARROW} {mutant.new}".rstrip()
    return EQUIVALENT.get(mutant.file, {}).get(mutant.where, {}).get(change, "")


def is_equivalent(tried: Tried) -> bool:
    """Return whether a mutant survived and is listed as equivalent."""
    return not tried.target and bool(reason_of(tried.mutant))


def too_many_equivalent(all_tried: Sequence[Tried]) -> bool:
    """Return whether more mutants than allowed are listed as equivalent."""
    return sum(map(is_equivalent, all_tried)) > MOST_EQUIVALENT * len(all_tried)


def rate(num_killed: int, num: int) -> str:
    """Format a kill rate with its 95 % interval."""
    if not num:
        return "none"
    low, high = wilson_interval(num, num_killed)
    return f"{num_killed} of {num}: {100 * num_killed / num:.1f} % ({low:.0f} to {high:.0f})"


def table(all_tried: Sequence[Tried]) -> str:
    """Return a table of kill rates per target, with a row per room and one for all."""
    counted = [tried for tried in all_tried if not is_equivalent(tried)]
    rooms = sorted({tried.mutant.room for tried in all_tried})
    rows = [["room", "equivalent", *(f"make {target}" for target in TARGETS)]]
    for room in [*rooms, "all"]:
        here = [tried for tried in counted if room in ("all", tried.mutant.room)]
        num_equivalent = sum(is_equivalent(tried) and room in ("all", tried.mutant.room) for tried in all_tried)
        killed = [sum(tried.target in TARGETS[: place + 1] for tried in here) for place in range(len(TARGETS))]
        rows.append([room, str(num_equivalent), *(rate(num, len(here)) for num in killed)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def survivor(tried: Tried, text: str) -> str:
    """Format a survivor as a diff and as an entry for `equivalent.py`."""
    mutant = tried.mutant
    lines = [f"{mutant.file} {mutant.where}: {mutant.operator}, survived {tried.num_tests} tests"]
    lines += [diff_of(mutant, text), f"  {mutant.old}{ARROW} {mutant.new}".rstrip()]
    if reason := reason_of(mutant):
        lines.append(f"  equivalent: {reason}")
    return "\n".join(lines)
