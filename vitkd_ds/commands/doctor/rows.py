"""The doctor's findings: one row each, those of all ranks merged into one table."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

MAX_NAMED = 4
"""Most nodes that a row names."""
WIDTH = 120
INDENT = 37
"""Characters before what was found: level, name, seconds."""


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
    """Of the check that this is the first row of."""


def ok(name: str, found: str) -> Row:
    """A row that asks for nothing."""
    return Row("ok", name, found)


def warning(name: str, found: str, advice: str) -> Row:
    """A row that does not fail the examination."""
    return Row("warning", name, found, advice)


def error(name: str, found: str, advice: str = "") -> Row:
    """A row that fails the examination."""
    return Row("error", name, found, advice)


def is_healthy(rows: Sequence[Row]) -> bool:
    """Whether no row is an error."""
    return all(row.level != "error" for row in rows)


def merged(rows_of_ranks: Sequence[Sequence[Row]], nodes: Sequence[str]) -> list[Row]:
    """One list of the rows of all ranks: of good news rank 0's, of bad news each once, with the nodes it comes from.

    Args:
        rows_of_ranks: the same check's rows, by rank.
        nodes: the node of each rank.
    """
    bad: dict[Row, list[int]] = {}
    for rank, rows in enumerate(rows_of_ranks):
        for row in rows:
            if row.level in ("warning", "error"):
                bad.setdefault(row, []).append(rank)
    named = [
        Row(row.level, row.name, _where(ranks, nodes) + row.found, row.advice, row.seconds)
        for row, ranks in bad.items()
    ]
    bad_names = {row.name for row in named}
    good = [row for row in rows_of_ranks[0] if row.level not in ("warning", "error") and row.name not in bad_names]
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
    """The rows as text, wrapped; the advice stands below what was found.

    Args:
        seconds: of the whole examination.
        ranks: how many there were, in words.
    """
    lines = [f"{'':8} {'check':20} {'s':>6}  found, and what to do"]
    for row in rows:
        taken = "" if row.seconds is None else f"{row.seconds:.1f}"
        lines += _wrapped(f"{row.level:8} {row.name:20} {taken:>6}  ", row.found)
        lines += _wrapped(" " * INDENT, f"-> {row.advice}") if row.advice else []
    counts = [f"{n} {level}s" for level in ("error", "warning") if (n := sum(row.level == level for row in rows)) > 1]
    counts += [f"1 {level}" for level in ("error", "warning") if sum(row.level == level for row in rows) == 1]
    verdict = ", ".join(sorted(counts, key=lambda count: "warning" in count)) or "nothing to do"
    return "\n".join([*lines, f"doctor: {verdict}, {seconds:.0f} s, {ranks}"])


def _wrapped(start: str, text: str) -> list[str]:
    """Lines of at most WIDTH, the first after `start`; file names stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )
