"""Input of the checks (`Patient`) and their output (`Row`), which is merged over all ranks."""

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
"""Maximum number of nodes named in a row."""
WIDTH = 120
INDENT = 37
"""Characters per line if there is no terminal, and characters of its first three columns: level, name, seconds."""


@dataclass
class Patient:
    """The run that is checked, and the results of earlier checks on this rank.

    If a check failed, its result is None on all ranks.
    """

    run: Run
    device: torch.device
    nodes: list[str] = field(default_factory=list)
    """Node name of each rank."""
    split: BatchSplit | None = None
    ds_config: dict[str, Any] | None = None
    models: Models | None = None
    trained_teachers: list[str] = field(default_factory=list)
    """Names of the teachers with available weights. The other teachers have random weights in the checks."""
    num_trained: int | None = None
    """Number of parameters of the student and the losses."""
    state_bytes: int = 0
    """Bytes of the optimizer state and moving average of these parameters."""
    parts: Parts | None = None
    images_per_s: float = 0.0
    """Training images/s per rank, uncompiled; 0 without a GPU."""
    loaders: dict[str, Loader] = field(default_factory=dict)
    """Loader of each split that could be opened, by split."""


class Skipped(Exception):
    """Raised if a check cannot run; the message says why. Raised on all ranks or on none."""


def needed(value: Any, what: str) -> Any:
    """Return `value`, the result of an earlier check. If it is None, raise Skipped with a message that names `what`."""
    if value is None:
        raise Skipped(f"needs {what}, which failed above")
    return value


@dataclass(frozen=True)
class Row:
    """One row of the table: a finding of a check."""

    level: str
    """ok, warning (the run would work, with a problem), error (it would fail), or skipped (not checked)."""
    name: str
    found: str
    advice: str = ""
    """Remedy; "" if no remedy is needed or the finding includes it."""
    seconds: float | None = None
    """Duration of the check; None in all but the check's first row."""


ok = partial(Row, "ok")
warning = partial(Row, "warning")
error = partial(Row, "error")


def judged(holds: bool, name: str, found: str, problem: str, advice: str) -> Row:
    """Return an ok row with the finding if `holds`, else a warning with finding, problem and advice."""
    return ok(name, found) if holds else warning(name, f"{found}, {problem}", advice)


def unequal(values: Sequence[Any], nodes: Sequence[str]) -> str:
    """Return "" if all values are equal, else rank 0's and the first different one as "A on node0 and B on node1"."""
    other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
    return "" if other is None else f"{values[0]} on {nodes[0]} and {values[other]} on {nodes[other]}"


def merged(rows_of_ranks: Sequence[Sequence[Row]], nodes: Sequence[str]) -> list[Row]:
    """Merge the rows of one check from all ranks.

    Each error or warning is kept once. If not all ranks have it, its text starts with the nodes that have it. The other
    rows are those of rank 0, except rows with the same name as an error or warning.
    """
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
    """Return a size in GiB, or in MiB below 1 GiB."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text wrapped to the terminal, each followed by its advice. The last line is the verdict."""
    # File names stay whole, so that they can be copied.
    wrap = partial(textwrap.wrap, width=columns(WIDTH), break_long_words=False, break_on_hyphens=False)
    lines = [f"{'':8} {'check':20} {'s':>6}  finding and remedy"]
    for row in rows:
        taken = "" if row.seconds is None else f"{row.seconds:.1f}"
        text = f"{row.level:8} {row.name:20} {taken:>6}  {row.found}"
        lines += wrap(text, subsequent_indent=" " * INDENT)
        if row.advice:
            lines += wrap(f"-> {row.advice}", initial_indent=" " * INDENT, subsequent_indent=" " * INDENT)
    counts = [(level, sum(row.level == level for row in rows)) for level in BAD]
    verdict = ", ".join(f"{count} {level}{'s' * (count > 1)}" for level, count in counts if count)
    return "\n".join([*lines, f"doctor: {verdict or 'nothing to do'}"])
