"""Train several recipes and settings with several seeds each, then write one table and the curves."""

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
    """Return the train.py options of all runs, finished or not. Each run has one line, quoted for a shell."""
    return "\n".join(shlex.join(member.options) for member in members)


def sweep(members: Sequence[Member], *, jobs: int = 1) -> str:
    """Train all unfinished runs, and return the table.

    Also write the table to sweep.md and sweep.csv in the sweep's folder. If matplotlib is installed, write the curves
    to sweep.png. If some runs failed, write and print the table of the finished runs, and exit with code 1. If a signal
    arrives, exit with code 1 without a table.

    Args:
        members: all runs of the sweep.
        jobs: number of runs that train at the same time.

    Raises:
        ValueError: `jobs` is below 1, or the folder of a run has a finished run with other settings.
    """
    if jobs < 1:
        raise ValueError(f"--jobs must be positive, got {jobs}")
    workdir = members[0].folder.parents[1]
    workdir.mkdir(parents=True, exist_ok=True)
    members = _packed(members)
    try:
        failed = run_missing(members, jobs=jobs)
    except Stopped:
        sys.exit("stopped after the running jobs saved a checkpoint. Rerun the same command to resume.")
    text = report(members, workdir)
    if failed:
        logs = ", ".join(f"{member.folder}.log" for member in failed)
        sys.exit(
            f"{text}\n\n{len(failed)} of {len(members)} runs are not finished. See {logs}. Rerun the same command to "
            "resume."
        )
    return text


def _packed(members: Sequence[Member]) -> list[Member]:
    """Pack class folders once, so that the runs only read the .betons. Return the members with the paths of these."""
    paths = {}
    packed = []
    for member in members:
        data = member.run.data
        key = (data.backend, data.train, data.val, data.labels, data.num_classes)
        if key not in paths:
            found = pack_folders(member.run).data
            paths[key] = {"train": found.train, "val": found.val}
        packed.append(replace(member, run=replace(member.run, data=replace(data, **paths[key]))))
    return packed


def report(members: Sequence[Member], workdir: Path) -> str:
    """Write the table and the curves of the finished runs. Return the table, or a message if no run has finished."""
    results = results_of(members)
    rows = rows_of(results)
    if not rows:
        return "no table: no run is finished"
    write_text(workdir / "sweep.md", markdown(rows) + "\n")
    write_text(workdir / "sweep.csv", csv_text(rows))
    try:
        from vitkd_ds.commands.sweep.curves import draw

        write_figure(workdir / "sweep.png", draw(results))
    except ImportError as error:
        logger.info("skipping the curves, which need matplotlib (%s). Run: pip install 'vitkd_ds[plot]'", error)
    return markdown(rows)


def results_of(members: Sequence[Member]) -> dict[str, dict[int, Result]]:
    """Return the finished runs: name -> seed -> result. A name without a finished run has an empty dict."""
    done = [member for member in members if member.is_done()]
    found: dict[str, dict[int, Result]] = {member.name: {} for member in members}
    if done:
        for member, result in zip(done, read_results([str(member.folder) for member in done]), strict=True):
            found[member.name][member.seed] = result
    return found
