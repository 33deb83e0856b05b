"""Input and output of a check: a `Patient`, and rows, of which those of all ranks make one table."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from vitkd_ds.commands.usage import columns
from vitkd_ds.config.run import Run
from vitkd_ds.data.epochs import Loader
from vitkd_ds.train.parts import Models, Parts
from vitkd_ds.train.schedule import BatchSplit

BAD = ("error", "warning")
MAX_NAMED = 4
"""Most nodes that a row names."""
WIDTH = 120
INDENT = 37
"""Characters of a line where no terminal says another number, and of its start: level, name, seconds."""


@dataclass
class Patient:
    """A run on this rank, and the findings of earlier checks: None where they failed, on all ranks or on none."""

    run: Run
    device: torch.device
    nodes: list[str] = field(default_factory=list)
    """The name of each rank's node."""
    split: BatchSplit | None = None
    ds_config: dict[str, Any] | None = None
    models: Models | None = None
    trained_teachers: list[str] = field(default_factory=list)
    """Teachers that have their own weights; random ones stand in for those that are not at hand."""
    num_trained: int | None = None
    """Parameters of the student and the losses."""
    state_bytes: int = 0
    """Optimizer state and moving average of these."""
    parts: Parts | None = None
    images_per_s: float = 0.0
    """Images that one rank trains per second, uncompiled; 0 where there is no GPU."""
    loaders: dict[str, Loader] = field(default_factory=dict)
    """By split, where the images could be opened."""


class Skipped(Exception):
    """A check cannot be made; the message says why. Raised on all ranks or on none."""


def needed(value: Any, what: str) -> Any:
    """Return the value that an earlier check left; raise Skipped, which names `what`, if there is none."""
    if value is None:
        raise Skipped(f"needs {what}, which failed above")
    return value


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
    """Duration of the check, only in its first row."""


ok = partial(Row, "ok")
warning = partial(Row, "warning")
error = partial(Row, "error")


def judged(holds: bool, name: str, found: str, problem: str, advice: str) -> Row:
    """An ok row with the finding; unless it `holds`, a warning that adds the problem and what to do."""
    return ok(name, found) if holds else warning(name, f"{found}, {problem}", advice)


def unequal(values: Sequence[Any], nodes: Sequence[str]) -> str:
    """The first value that is not that of rank 0, as "A on node0 and B on node1"; "" if all ranks have the same."""
    other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
    return "" if other is None else f"{values[0]} on {nodes[0]} and {values[other]} on {nodes[other]}"


def merged(rows_of_ranks: Sequence[Sequence[Row]], nodes: Sequence[str]) -> list[Row]:
    """Merge the rows of one check: good news only of rank 0, bad news once each, with the nodes where it was found."""
    rows = [row for rows in rows_of_ranks for row in rows]
    bad = dict.fromkeys(row for row in rows if row.level in BAD)
    bad_names = {row.name for row in bad}
    found = [row for row in rows_of_ranks[0] if row.name not in bad_names]
    for row in bad:
        ranks = [rank for rank, rows in enumerate(rows_of_ranks) if row in rows]
        where = f"rank {ranks[0]} on " * (len(ranks) == 1) + _listed(sorted({nodes[rank] for rank in ranks})) + ": "
        found.append(row if len(ranks) == len(nodes) else replace(row, found=where + row.found))
    names = list(dict.fromkeys(row.name for row in rows))
    return sorted(found, key=lambda row: names.index(row.name))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def size_text(num_bytes: float) -> str:
    """A size in GiB, or in MiB below one."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def table(rows: Sequence[Row]) -> str:
    """The rows as text as wide as the terminal, advice below the finding, and a line with the verdict."""
    # File names stay whole, so that they can be copied.
    wrap = partial(textwrap.wrap, width=columns(WIDTH), break_long_words=False, break_on_hyphens=False)
    lines = [f"{'':8} {'check':20} {'s':>6}  found, and what to do"]
    for row in rows:
        taken = "" if row.seconds is None else f"{row.seconds:.1f}"
        text = f"{row.level:8} {row.name:20} {taken:>6}  {row.found}"
        lines += wrap(text, subsequent_indent=" " * INDENT)
        if row.advice:
            lines += wrap(f"-> {row.advice}", initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    counts = [(level, sum(row.level == level for row in rows)) for level in BAD]
    verdict = ", ".join(f"{count} {level}{'s' * (count > 1)}" for level, count in counts if count)
    return "\n".join([*lines, f"doctor: {verdict or 'nothing to do'}"])
