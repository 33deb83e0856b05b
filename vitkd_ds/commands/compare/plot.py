"""Curves of runs: validation top-1 and training loss over the epochs, one colour per run. matplotlib is an extra."""

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from vitkd_ds.checkpoint.files import write_whole
from vitkd_ds.commands.compare.runs import Result, evaluations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

INCHES, DOTS_PER_INCH = (12, 5), 120
LEGEND_COLUMNS = 4
NUM_COLOURS = 10
"""Colours that are easily told apart; more runs are coloured along a rainbow."""


def check_plot(plot: str) -> Path:
    """Check that curves can be drawn, and written to `plot`; raises ValueError if not. Return the path."""
    path = Path(plot)
    if path.suffix != ".png":
        raise ValueError(f"--plot must end in .png, found {plot!r}: give another name")
    if not path.parent.is_dir():
        raise ValueError(f"--plot must lie in a folder that exists, found none at {str(path.parent)!r}: make it")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib, found {error}: pip install 'vitkd_ds[plot]'") from None
    return path


def write_plot(path: Path, results: Sequence[Result]) -> None:
    """Write the curves to a PNG, whole, replacing any."""
    content = io.BytesIO()
    draw(results).savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_whole(path, lambda file: file.write(content.getvalue()))
    logger.info("curves written to %s", path)


def draw(results: Sequence[Result]) -> "Figure":
    """Draw the two plots side by side, with one legend."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    FigureCanvasAgg(figure)  # no window and no display
    accuracy, loss = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab10" if len(results) <= NUM_COLOURS else "turbo"]
    for number, result in enumerate(results):
        colour = colours(number if len(results) <= NUM_COLOURS else number / (len(results) - 1))
        steps_per_epoch = result.config["plan"]["steps_per_epoch"]
        logged = [line for line in result.lines if line.get("total") is not None]
        for axes, lines, key, marker in (
            (accuracy, evaluations(result.lines), "val_top1", "o"),
            (loss, logged, "total", ""),
        ):
            epochs = [line["step"] / steps_per_epoch for line in lines]
            axes.plot(epochs, [line[key] for line in lines], color=colour, label=result.name, marker=marker)
    accuracy.set(xlabel="training time (epochs)", ylabel="validation top-1 (%)")
    loss.set(xlabel="training time (epochs)", ylabel="total training loss (weighted sum of its terms)")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
    figure.legend(*accuracy.get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
    return figure
