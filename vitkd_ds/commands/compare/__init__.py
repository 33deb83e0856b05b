"""Compare runs: a table with a row per run folder, and mean differences between groups with common seeds.

Run folders are read without torch, so an invalid folder is reported at once. Only inference speed is measured.
"""

from vitkd_ds.commands.compare.plot import check_plot, write_plot
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.compare.seeds import WIDEST, differences_text, groups_of
from vitkd_ds.commands.compare.table import csv_text, table_text
from vitkd_ds.commands.usage import wrapped


def compare(*runs: str, csv: bool = False, plot: str = "", speed: bool = True) -> str:
    """Return a table of runs and, below it, the differences between their settings.

    Args:
        runs: run folders, finished or still training. The first one is the reference for differences.
        csv: return only the rows, as CSV in full precision.
        plot: PNG file for the curves; "" draws none.
        speed: measure inference speed of student and teacher on this machine's first device.

    Raises:
        ValueError: a folder is not a run or is given twice, the curves cannot be drawn, or a student cannot be loaded
            to measure its speed.
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
