"""Compare runs: a table with one row per run, and mean differences between groups of runs with the same seeds.

Run folders are read without importing torch, so an invalid folder is reported at once. Nothing is evaluated again; only
inference speed is measured.
"""

from vitkd_ds.commands.compare.plot import check_plot, write_plot
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.compare.seeds import WIDEST, differences_text, groups_of
from vitkd_ds.commands.compare.table import csv_text, table_text
from vitkd_ds.commands.usage import wrapped


def compare(*runs: str, csv: bool = False, plot: str = "", speed: bool = True) -> str:
    """Return a table of runs and, below it, the differences in top-1 and settings between groups of these runs.

    Args:
        runs: folders of runs that are finished or still training. Differences are relative to the first run's group.
        csv: whether to return the rows as CSV in full precision, without the text below the table.
        plot: path of the PNG for the curves; "" means no plot.
        speed: whether to measure the inference speed of students and teachers on this machine's first GPU, or on the
            CPU if there is no GPU.

    Raises:
        ValueError: a folder is not a run folder, is given twice or has no evaluation yet; the plot cannot be written;
            or a student cannot be loaded to measure its speed.
    """
    path = check_plot(plot) if plot else None
    results = read_results(runs)
    speeds = None
    if speed:
        from vitkd_ds.commands.compare.speed import measure  # imports torch and timm, so check the folders first

        speeds = measure(results)
    if path:
        write_plot(path, results)
    groups = groups_of(results)
    if csv:
        return csv_text(results, groups, speeds)
    sentences = differences_text(results, groups).splitlines()
    below = "\n".join(line for text in sentences for line in wrapped(text, after=4, widest=WIDEST))
    return "\n\n".join([table_text(results, speeds), *([below] if below else [])])
