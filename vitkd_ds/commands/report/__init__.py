"""HTML report on runs that are finished or still training: one file without external resources.

A report trains and evaluates nothing. It reads the predictions that each run stored at its newest evaluation. It
therefore takes seconds, works during training, and agrees with metrics.jsonl.
"""

from pathlib import Path

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.commands.compare.runs import read_results

NAME = "report.html"


def report(*runs: str, out: str = "") -> Path:
    """Write a report that compares the first run with the other runs; return the path of the report.

    Args:
        runs: run folders.
        out: path of the HTML file; an existing file is replaced. "" means report.html in the first run folder.

    Raises:
        ValueError: a folder is not a run folder, is given twice or contains a damaged file; or `out` does not end in
            .html or its folder does not exist.
    """
    path = Path(out) if out else Path(runs[0]) / NAME
    if path.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {out!r}")
    if out and not path.parent.is_dir():
        raise ValueError(f"the folder of --out, {str(path.parent)!r}, does not exist. Create it first.")
    results = read_results(runs, must_be_evaluated=False)
    from vitkd_ds.commands.report.page import page  # imports torch, so check the folders first

    write_text(path, page(results))
    return path
