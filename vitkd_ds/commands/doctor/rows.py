"""The doctor's findings: one row each, and those of all ranks merged into one table."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

BAD = ("error", "warning")
MAX_NAMED = 4
"""Most nodes or images that a row names."""
WIDTH, INDENT = 120, 37
"""Characters of a line, and of its start: level, name, seconds."""


@dataclass(frozen=True)
class Row:
    """One finding."""

    level: str
    """ok, warning (the run goes, but not as it should), error (it would fail), skipped (could not be looked at)."""
    name: str
    found: str
    advice: str = ""
    """What to do; "" where the finding says it."""
    seconds: float | None = None
    """Duration of the check, in its first row alone."""


ok, warning, error = partial(Row, "ok"), partial(Row, "warning"), partial(Row, "error")


def judged(holds: bool, name: str, found: str, *, problem: str, advice: str) -> Row:
    """An ok row with what was found; unless it `holds`, a warning that adds the problem and what to do."""
    return ok(name, found) if holds else warning(name, f"{found}, {problem}", advice)


def is_healthy(rows: Sequence[Row]) -> bool:
    """Whether no row is an error."""
    return all(row.level != "error" for row in rows)


def first_other(values: Sequence[Any]) -> int | None:
    """The first rank whose value is not that of rank 0; None if all are the same."""
    return next((rank for rank, value in enumerate(values) if value != values[0]), None)


def merged(rows_of_ranks: Sequence[Sequence[Row]], nodes: Sequence[str]) -> list[Row]:
    """Merge the rows of all ranks: good news of rank 0 alone, bad news once each, with the nodes where it was found.

    Args:
        rows_of_ranks: the rows of one check, by rank.
        nodes: the node of each rank.
    """
    bad: dict[Row, list[int]] = {}
    for rank, rows in enumerate(rows_of_ranks):
        for row in rows:
            if row.level in BAD:
                bad.setdefault(row, []).append(rank)
    named = [replace(row, found=_where(ranks, nodes) + row.found) for row, ranks in bad.items()]
    bad_names = {row.name for row in bad}
    good = [row for row in rows_of_ranks[0] if row.name not in bad_names]
    order = list(dict.fromkeys(row.name for rows in rows_of_ranks for row in rows))
    return sorted(good + named, key=lambda row: order.index(row.name))


def _where(ranks: list[int], nodes: Sequence[str]) -> str:
    if len(ranks) == len(nodes):
        return ""
    if len(ranks) == 1:
        return f"rank {ranks[0]} on {nodes[ranks[0]]}: "
    return f"{listed(sorted({nodes[rank] for rank in ranks}))}: "


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def size_text(num_bytes: float) -> str:
    """A size in GiB, or in MiB below one."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def table(rows: Sequence[Row], *, seconds: float, ranks: str) -> str:
    """The rows as text of at most WIDTH characters a line; the advice stands below what was found.

    Args:
        seconds: duration of the whole examination.
        ranks: how many there were, in words.
    """
    lines = [f"{'':8} {'check':20} {'s':>6}  found, and what to do"]
    for row in rows:
        taken = "" if row.seconds is None else f"{row.seconds:.1f}"
        lines += _wrapped(f"{row.level:8} {row.name:20} {taken:>6}  ", row.found)
        lines += _wrapped(" " * INDENT, f"-> {row.advice}") if row.advice else []
    counts = [(level, sum(row.level == level for row in rows)) for level in BAD]
    verdict = ", ".join(f"{count} {level}{'s' * (count > 1)}" for level, count in counts if count)
    return "\n".join([*lines, f"doctor: {verdict or 'nothing to do'}, {seconds:.0f} s, {ranks}"])


def _wrapped(start: str, text: str) -> list[str]:
    whole_names = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * INDENT, **whole_names)
