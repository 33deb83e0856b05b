"""Plot validation top-1 over epochs, as mean and 95 % interval of several seeds. Needs matplotlib."""

import statistics
from typing import Mapping

from matplotlib.figure import Figure

from vitkd_ds.commands.compare.plot import add_legend, colours_of, new_figure
from vitkd_ds.commands.compare.runs import Result, evaluations
from vitkd_ds.train.statistics import t_interval


def draw(results: Mapping[str, Mapping[int, Result]]) -> Figure:
    """Draw one line and one interval band per name.

    Args:
        results: finished runs: name -> seed -> result.
    """
    figure = new_figure(9, 6)
    axes = figure.subplots()
    for (name, by_seed), colour in zip(results.items(), colours_of(len(results))):
        epochs, means, lows, highs = curve_of(by_seed)
        axes.plot(epochs, means, color=colour, label=name, marker="o")
        axes.fill_between(epochs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.set_ylabel("validation top-1 (%), mean of the seeds and 95 % interval")
    add_legend(figure)
    return figure


def curve_of(by_seed: Mapping[int, Result]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return four lists with one value per epoch: epoch, mean top-1, and the lower and upper bound of the interval.

    An epoch is included only if it has an evaluation for every seed. With one seed or equal values, both bounds are the
    mean.
    """
    tables = []
    for result in by_seed.values():
        steps_per_epoch = result.config["plan"]["steps_per_epoch"]
        tables.append({line["step"] / steps_per_epoch: line["val_top1"] for line in evaluations(result.lines)})
    epochs = sorted(set.intersection(*map(set, tables))) if tables else []
    values = [[table[epoch] for table in tables] for epoch in epochs]
    means = [statistics.mean(each) for each in values]
    intervals = [t_interval(each) if len(each) > 1 else None for each in values]
    bounds = [interval or (mean, mean) for interval, mean in zip(intervals, means)]
    return epochs, means, [low for low, _ in bounds], [high for _, high in bounds]
