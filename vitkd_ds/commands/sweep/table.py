"""Table of a sweep, as Markdown and CSV: mean top-1, interval, paired difference from the first row, and time."""

import csv
import io
import statistics
from dataclasses import asdict, dataclass
from typing import Mapping, Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.table import safe_cell
from vitkd_ds.train.statistics import paired_p, t_interval, t_interval_of_differences

TOO_SMALL = "n too small"
"""Text in place of an interval or a p-value that cannot be computed, for a single seed or equal values."""


@dataclass(frozen=True)
class Row:
    """Results of all finished runs with the same name: top-1 in percent, differences in points, time in seconds.

    An interval or a p-value is None for a single seed or equal values.
    """

    name: str
    seeds: int
    top1: float
    low: float | None
    high: float | None
    """Upper bound of the 95 % confidence interval of the mean top-1; `low` is the lower bound. The interval is from
    Student's t distribution, with one value per seed."""
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    """Upper bound of the 95 % interval of `difference`; `difference_low` is the lower bound. `difference` is the mean
    difference from the first row over the common seeds. All three are None if there is no common seed, or if a pair of
    runs was evaluated on different images."""
    p: float | None
    """Two-sided p-value of the paired t-test on the differences."""
    seconds: float | None
    """Mean training time of a run."""
    has_same_images: bool = True
    """Whether each run and the first row's run with the same seed were evaluated on the same images."""


def rows_of(results: Mapping[str, Mapping[int, Result]]) -> list[Row]:
    """Return one row per name that has results. Each row has its differences from the first row.

    Args:
        results: finished runs: name -> seed -> result.
    """
    rows = []
    first = next((by_seed for by_seed in results.values() if by_seed), {})
    for name, by_seed in results.items():
        if not by_seed:
            continue
        top1 = [result.top1 for result in by_seed.values()]
        low, high = (t_interval(top1) if len(top1) > 1 else None) or (None, None)
        both = [] if by_seed is first else sorted(by_seed.keys() & first.keys())
        has_same_images = not any("data.val" in by_seed[seed].other_images(first[seed]) for seed in both)
        # Top-1 on different images cannot be compared in pairs.
        differences = [by_seed[seed].top1 - first[seed].top1 for seed in both] if has_same_images else []
        enough = len(differences) > 1
        bounds = (t_interval_of_differences(differences) if enough else None) or (None, None)
        seconds = [result.training_s for result in by_seed.values() if result.training_s is not None]
        rows.append(
            Row(
                name,
                len(top1),
                statistics.mean(top1),
                low,
                high,
                statistics.mean(differences) if differences else None,
                *bounds,
                paired_p(differences) if enough else None,
                statistics.mean(seconds) if seconds else None,
                has_same_images,
            )
        )
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return a Markdown table with aligned columns, readable as plain text."""
    header = ("runs", "n", "top-1 %", "95 % interval", "difference", "95 % interval", "p", "time")
    cells = [
        (
            row.name,
            str(row.seeds),
            f"{row.top1:.2f}",
            _interval(row.low, row.high, ""),
            *_difference(row),
            "" if row.seconds is None else f"{row.seconds:.0f} s",
        )
        for row in rows
    ]
    widths = [max(2, *(len(line[i]) for line in (header, *cells))) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        for line in (header, rule, *cells)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV in full precision. Unknown values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: safe_cell(value) for key, value in asdict(row).items()} for row in rows)
    return text.getvalue()


def _difference(row: Row) -> tuple[str, str, str]:
    """Return three cells: the difference from the first row, its interval and its p-value."""
    if row.difference is None:
        return "" if row.has_same_images else "other images", "", ""
    p = TOO_SMALL if row.p is None else f"{row.p:.2g}"
    return f"{row.difference:+.2f}", _interval(row.difference_low, row.difference_high, "+"), p


def _interval(low: float | None, high: float | None, sign: str) -> str:
    return TOO_SMALL if low is None else f"[{low:{sign}.2f}, {high:{sign}.2f}]"
