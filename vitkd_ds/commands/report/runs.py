"""Two tables of a report: the runs, and groups of runs that differ only in their seed."""

from collections.abc import Sequence
from typing import Any

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.seeds import Group, groups_of, settings_line
from vitkd_ds.commands.compare.table import table_rows
from vitkd_ds.commands.sweep.table import Row, rows_of

MEASURED = 2
"""Number of columns at the end of `compare`'s table that need a speed measurement. A report leaves them out."""
MOST_NAMED = 3
"""Maximum number of runs named per group."""
GROUP_HEADS = (
    "finished runs that differ only in seed",
    "n",
    "mean top-1 %",
    "95 % interval",
    "group 1 minus this group, points",
    "95 % interval",
    "p",
)


def table_of_runs(results: Sequence[Result]) -> dict[str, Any]:
    """Return the cells of the table of runs and, if at least two runs are finished, of the table of groups.

    For runs without an evaluation, only the names are returned, as "waiting".
    """
    evaluated = [result for result in results if result.evaluation]
    waiting = [result.name for result in results if not result.evaluation]
    found: dict[str, Any] = {"rows": [], "waiting": waiting, "groups": [], "group_heads": GROUP_HEADS}
    if evaluated:
        heads, *rows = table_rows(evaluated, None)
        found["heads"] = heads[:-MEASURED]
        found["rows"] = [row[:-MEASURED] for row in rows]
    groups = groups_of(evaluated)
    if sum(map(len, groups)) > 1:
        named = {_name(number, group): group for number, group in enumerate(groups, start=1)}
        found["groups"] = [_cells(row) for row in rows_of(named)]
        found["settings"] = [settings_line(n, group, groups[0]) for n, group in enumerate(groups[1:], start=2)]
    return found


def _name(number: int, group: Group) -> str:
    names = [result.name for result in group.values()]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"group {number}: {', '.join(names[:MOST_NAMED])}{more}"


def _cells(row: Row) -> list[str]:
    """Return the cells of a group. If there is no difference from the first group, the last three cells are "-"."""
    interval = "-" if row.low is None else f"[{row.low:.2f}, {row.high:.2f}]"
    shown = [row.name, str(row.seeds), f"{row.top1:.2f}", interval]
    if row.difference is None:
        return [*shown, "-", "-", "-"]
    # A row has its group's top-1 minus the first group's; the table shows the opposite.
    interval = "-"
    if row.difference_low is not None:
        interval = f"[{-row.difference_high:+.2f}, {-row.difference_low:+.2f}]"
    return [*shown, f"{-row.difference:+.2f}", interval, "-" if row.p is None else f"{row.p:.2g}"]
