"""Compare runs: a row for each run folder, and the differences between settings over the seeds that both have.

All is read without torch, so a folder that is no run is refused at once. Only the speed at inference is measured.
"""

from vitkd_ds.commands.compare.plot import check_plot, write_plot
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.compare.seeds import WIDEST, differences_text, groups_of
from vitkd_ds.commands.compare.table import csv_text, table_text
from vitkd_ds.commands.usage import wrapped


def compare(*runs: str, csv: bool = False, plot: str = "", speed: bool = True) -> str:
    """Make the text of a table of run folders and, below it, of the differences between their settings.

    Args:
        runs: run folders, finished or still going; differences are to the settings of the first.
        csv: make CSV of the rows alone, in full precision.
        plot: a PNG to write the curves to; "" is none.
        speed: measure student and teacher at inference on this machine's first device.

    Raises:
        ValueError: a folder that is no run or is given twice, no way to plot, or a student that cannot be measured.
    """
    path = check_plot(plot) if plot else None
    results = read_results(runs)
    speeds = None
    if speed:
        from vitkd_ds.commands.compare.speed import measure  # slow: torch and timm, only after the folders are checked

        speeds = measure(results)
    if path:
        write_plot(path, results)
    groups = groups_of(results)
    if csv:
        return csv_text(results, groups, speeds)
    sentences = differences_text(results, groups).splitlines()
    below = "\n".join(line for text in sentences for line in wrapped(text, after=4, widest=WIDEST))
    return "\n\n".join([table_text(results, speeds), *([below] if below else [])])
