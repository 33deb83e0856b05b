"""A report on runs, finished or still going: one HTML file that needs no network and no other file.

Nothing is trained or evaluated for it. What both models answered for each image was stored by the run's newest
evaluation, so a report costs seconds, works while the run goes on, and says the same as metrics.jsonl.
"""

from pathlib import Path

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.commands.compare.runs import read_results

NAME = "report.html"


def report(*runs: str, out: str = "") -> Path:
    """Write a report on the first of the run folders, with the others beside it; return its path.

    Args:
        out: the file to write, replacing any; "" is report.html in the first folder.

    Raises:
        ValueError: a folder that is no run, is given twice, or has a damaged file, or no place for the file.
    """
    path = Path(out) if out else Path(runs[0]) / NAME
    if path.suffix != ".html":
        raise ValueError(f"--out must end in .html, found {out!r}: give another name")
    if out and not path.parent.is_dir():
        raise ValueError(f"--out must lie in a folder that exists, found none at {str(path.parent)!r}: make it")
    results = read_results(runs, must_be_evaluated=False)
    from vitkd_ds.commands.report.page import page  # slow: torch, only after the folders are checked

    write_text(path, page(results))
    return path
