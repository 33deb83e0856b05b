"""The section of runs: a row for each, and over seeds the means of settings and the differences between them."""

from collections.abc import Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.seeds import Group, groups_of, settings_line
from vitkd_ds.commands.compare.table import table_rows
from vitkd_ds.commands.report.html import Html, element, joined, section, table
from vitkd_ds.commands.sweep.table import Row, rows_of

MEASURED = 2
"""Last columns of a comparison, which are of a measurement and so are left out."""
MOST_NAMED = 3
"""Runs of a group that are named."""
GROUPS = (
    "finished runs that differ in the seed alone", "n", "mean top-1 %", "95 % interval",
    "first group minus this, points", "95 % interval", "p",
)  # fmt: skip


def runs_section(results: Sequence[Result]) -> Html:
    """A table of the runs, and one of their groups where there are any to compare."""
    evaluated = [result for result in results if result.evaluation]
    parts: list[Html] = []
    if evaluated:
        header, *rows = table_rows(evaluated, None)
        heads = [_head(top, below) for top, below in header[:-MEASURED]]
        parts = [
            table(heads, [row[:-MEASURED] for row in rows], class_="sorts", id="runs-table"),
            element("p", "The interval is Wilson's, over the validation images.", class_="note"),
        ]
    if waiting := [result.name for result in results if not result.evaluation]:
        parts.append(element("p", f"Without an evaluation of top-1: {', '.join(waiting)}.", class_="note"))
    groups = groups_of(evaluated)
    if sum(map(len, groups)) > 1:
        parts += _over_seeds(groups)
    return section("runs", "Runs", *parts)


def _head(top: str, below: str) -> Html:
    return joined((f"{top[:-1]}{below}",)) if top.endswith("-") else joined((top, element("br"), below))


def _over_seeds(groups: Sequence[Group]) -> list[Html]:
    rows = rows_of({_name(number, group): group for number, group in enumerate(groups, start=1)})
    cells = [_cells(row) for row in rows]
    lines = [settings_line(number, group, groups[0]) for number, group in enumerate(groups[1:], start=2)]
    lines += ["Intervals are Student's: over seeds, for differences over pairs of the same seed."]
    lines += ["One seed has none, nor have values that are equal at all seeds."]
    title, notes = element("h3", "Over seeds"), [element("p", line, class_="note") for line in lines]
    return [title, table(GROUPS, cells, id="groups-table"), *notes]


def _name(number: int, group: Group) -> str:
    names = [result.name for result in group.values()]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"group {number}: {', '.join(names[:MOST_NAMED])}{more}"


def _cells(row: Row) -> tuple[str, ...]:
    """The cells of a group; without a difference where its validation images are not the first group's."""
    shown = [
        row.name,
        str(row.seeds),
        f"{row.top1:.2f}",
        "-" if row.low is None else f"[{row.low:.2f}, {row.high:.2f}]",
    ]
    if row.difference is None:
        return (*shown, "-", "-", "-")
    # A row's difference is that of its group to the first.
    interval = "-"
    if row.difference_low is not None:
        interval = f"[{-row.difference_high:+.2f}, {-row.difference_low:+.2f}]"
    return (*shown, f"{-row.difference:+.2f}", interval, "-" if row.p is None else f"{row.p:.2g}")
