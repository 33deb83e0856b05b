"""Plot validation top-1 and training loss over epochs, with one colour per run. Needs matplotlib."""

import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

from vitkd_ds.checkpoint.files import write_whole
from vitkd_ds.commands.compare.runs import Result, evaluations

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

DOTS_PER_INCH = 120
LEGEND_COLUMNS = 4
NUM_COLOURS = 10
"""Maximum number of runs with easily distinguished colours. With more runs, all colours are from a rainbow colormap."""


def check_plot(plot: str) -> Path:
    """Return `plot` as a path.

    Raises:
        ValueError: the path does not end in .png, its folder does not exist, or matplotlib is not installed.
    """
    path = Path(plot)
    if path.suffix != ".png":
        raise ValueError(f"--plot must end in .png, got {plot!r}")
    if not path.parent.is_dir():
        raise ValueError(f"the folder of --plot, {str(path.parent)!r}, does not exist. Create it first.")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(f"--plot needs matplotlib ({error}). Run: pip install 'vitkd_ds[plot]'") from None
    return path


def write_plot(path: Path, results: Sequence[Result]) -> None:
    """Plot runs and write the plot to a PNG atomically. An existing file is replaced."""
    write_figure(path, draw(results))
    logger.info("wrote the curves to %s", path)


def write_figure(path: Path, figure: "Figure") -> None:
    """Write a figure to a PNG atomically. An existing file is replaced."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DOTS_PER_INCH)
    write_whole(path, lambda file: file.write(content.getvalue()))


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure that needs no display. Its width and height are in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def colours_of(count: int) -> list[tuple[float, ...]]:
    """Return `count` colours that are as distinct as possible."""
    import matplotlib

    if count <= NUM_COLOURS:
        return [matplotlib.colormaps["tab10"](number) for number in range(count)]
    return [matplotlib.colormaps["turbo"](number / (count - 1)) for number in range(count)]


def draw(results: Sequence[Result]) -> "Figure":
    """Draw validation top-1 and training loss side by side, with one legend."""
    figure = new_figure(12, 5)
    accuracy, loss = figure.subplots(1, 2)
    for result, colour in zip(results, colours_of(len(results))):
        logged = [line for line in result.lines if line.get("total") is not None]
        for axes, lines, key, marker in (
            (accuracy, evaluations(result.lines), "val_top1", "o"),
            (loss, logged, "total", ""),
        ):
            epochs = [line["step"] / result.config["plan"]["steps_per_epoch"] for line in lines]
            axes.plot(epochs, [line[key] for line in lines], color=colour, label=result.name, marker=marker)
    accuracy.set_ylabel("validation top-1 (%)")
    loss.set_ylabel("total training loss (weighted sum of its terms)")
    add_legend(figure)
    return figure


def add_legend(figure: "Figure") -> None:
    """Add a grid and an epoch label to all axes, and one legend to the figure."""
    for axes in figure.axes:
        axes.set_xlabel("training time (epochs)")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)
