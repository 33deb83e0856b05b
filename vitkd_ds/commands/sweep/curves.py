"""Curves of a sweep: validation top-1 over the epochs, mean and 95 % interval over the seeds. Needs matplotlib."""

import io
import statistics
from pathlib import Path
from typing import Mapping

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vitkd_ds.checkpoint.files import write_whole
from vitkd_ds.commands.compare.plot import DOTS_PER_INCH, LEGEND_COLUMNS, NUM_COLOURS
from vitkd_ds.commands.compare.runs import Result, evaluations
from vitkd_ds.train.statistics import t_interval

INCHES = (9, 6)


def write_curves(path: Path, results: Mapping[str, Mapping[int, Result]]) -> None:
    """Write the curves of runs by name and seed to a PNG, whole, replacing any."""
    content = io.BytesIO()
    draw(results).savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_whole(path, lambda file: file.write(content.getvalue()))


def draw(results: Mapping[str, Mapping[int, Result]]) -> Figure:
    """Draw a line for each name, of the epochs at which all of its seeds were evaluated, with a band around it."""
    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)  # no window and no display
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(results) <= NUM_COLOURS else "turbo"]
    for number, (name, by_seed) in enumerate(results.items()):
        colour = colours(number if len(results) <= NUM_COLOURS else number / (len(results) - 1))
        epochs, means, lows, highs = curve_of(by_seed)
        axes.plot(epochs, means, color=colour, label=name, marker="o")
        axes.fill_between(epochs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="training time (epochs)", ylabel="validation top-1 (%), mean and 95 % interval over seeds")
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure


def curve_of(by_seed: Mapping[int, Result]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Epochs, mean top-1, and the ends of its interval, which are the mean itself where n is too small for one."""
    tables = [
        {
            line["step"] / result.config["plan"]["steps_per_epoch"]: line["val_top1"]
            for line in evaluations(result.lines)
        }
        for result in by_seed.values()
    ]
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    values = [[table[epoch] for table in tables] for epoch in epochs]
    means = [statistics.mean(each) for each in values]
    intervals = [t_interval(each) if len(each) > 1 else None for each in values]
    bounds = [interval or (mean, mean) for interval, mean in zip(intervals, means)]
    return epochs, means, [low for low, _ in bounds], [high for _, high in bounds]
