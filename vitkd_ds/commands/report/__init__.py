"""HTML report on runs, finished or still training: one file without external resources.

A report trains and evaluates nothing. It reads the predictions that the newest evaluation of each run has stored, so it
takes seconds, works during training, and agrees with metrics.jsonl.
"""

from pathlib import Path

from vitkd_ds.checkpoint.files import write_text
from vitkd_ds.commands.compare.runs import read_results

NAME = "report.html"


def report(*runs: str, out: str = "") -> Path:
    """Write a report on the first run, compared with the others; return its path.

    Args:
        out: file to write, replacing any; "" writes report.html in the first folder.

    Raises:
        ValueError: a folder is not a run, is given twice or has a damaged file, or `out` is not an .html file in an
            existing folder.
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
