"""Compare recipes and settings over seeds: train what is missing, then one table and the curves."""

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Sequence

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.commands.compare.plot import write_figure
from vitkd_ds.commands.compare.runs import Result, read_results
from vitkd_ds.commands.pack.folders import pack_folders
from vitkd_ds.commands.sweep.members import Member
from vitkd_ds.commands.sweep.run import Stopped, run_missing
from vitkd_ds.commands.sweep.table import csv_text, markdown, rows_of

logger = logging.getLogger(__name__)


def commands(members: Sequence[Member]) -> str:
    """The options of train.py of each run, finished or not, a line each, quoted for a shell."""
    return "\n".join(shlex.join(member.options) for member in members)


def sweep(members: Sequence[Member], *, jobs: int = 1) -> str:
    """Train what is missing, `jobs` runs at a time, and make the text of the table.

    Writes the table to sweep.md and sweep.csv in the sweep's folder and, where matplotlib is installed, curves to
    sweep.png. If runs failed, the table is of the others, and the process ends with 1 after it. A signal to the sweep
    ends it with 1 and without a table.

    Raises:
        ValueError: `jobs` is below 1, or a finished run has other settings.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, found {jobs}: leave it out for one at a time")
    workdir = members[0].folder.parents[1]
    workdir.mkdir(parents=True, exist_ok=True)
    # Class folders are packed once, here, and not by several runs; a run's settings then name the .beton.
    members = [replace(member, run=pack_folders(member.run)) for member in members]
    try:
        failed = run_missing(members, jobs=jobs)
    except Stopped:
        sys.exit("stopped, and what was training has saved; the same command goes on")
    text = report(members, workdir)
    if failed:
        logs = ", ".join(f"{member.folder}.log" for member in failed)
        sys.exit(
            f"{text}\n\n{len(failed)} of {len(members)} runs are not finished; the same command goes on. See {logs}"
        )
    return text


def report(members: Sequence[Member], workdir: Path) -> str:
    """Write table and curves of the finished runs, and return the table, or that there is none."""
    results = results_of(members)
    rows = rows_of(results)
    if not rows:
        return "no run is finished, so there is no table"
    write_text(workdir / "sweep.md", markdown(rows) + "\n")
    write_text(workdir / "sweep.csv", csv_text(rows))
    try:
        from vitkd_ds.commands.sweep.curves import draw

        write_figure(workdir / "sweep.png", draw(results))
    except ImportError as error:
        logger.info("no curves, as they need matplotlib (%s): pip install 'vitkd_ds[plot]'", error)
    return markdown(rows)


def results_of(members: Sequence[Member]) -> dict[str, dict[int, Result]]:
    """The finished runs by name and seed."""
    done = [member for member in members if member.is_done()]
    found: dict[str, dict[int, Result]] = {member.name: {} for member in members}
    if done:
        for member, result in zip(done, read_results([str(member.folder) for member in done]), strict=True):
            found[member.name][member.seed] = result
    return found
