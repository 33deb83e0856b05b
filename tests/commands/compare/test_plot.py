"""The plot: one curve of each kind per run, from its metrics; errors of --plot."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.compare.conftest import shown, unfinish
from tests.conftest import metrics_of, run_command
from vitkd_ds.commands.compare.plot import draw
from vitkd_ds.commands.compare.runs import read_results


def test_the_command_prints_csv_and_nothing_else_and_writes_the_plot(runs):
    folders = [runs / "plain0", runs / "taught0"]
    done = run_command("vitkd-ds", "compare", *folders, "--speed", "false", "--csv", "--plot", runs / "x.png")
    assert done.stdout == shown(*folders, csv=True) + "\n" and f"wrote the curves to {runs}/x.png" in done.stderr
    pixels = np.asarray(Image.open(runs / "x.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 20 and [*runs.glob(".*")] == []


@pytest.mark.parametrize(
    "name, message",
    [
        ("x.pdf", "--plot must end in .png, got"),
        ("x", "--plot must end in .png"),
        ("no/x.png", "the folder of --plot"),
    ],
)
def test_an_unusable_plot_name_is_rejected_before_the_folders_are_read(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        shown("no-run", plot=str(tmp_path / name))


def test_without_matplotlib_the_error_says_what_to_install(trained, tmp_path):
    blocked = "import sys; sys.modules['matplotlib'] = None; from vitkd_ds.cli import main; main()"
    command = (sys.executable, "-c", blocked, "compare", trained / "plain0", "--speed=false")
    done = run_command(*command, "--plot", tmp_path / "x.png", check=False)
    assert done.returncode == 2 and not done.stdout and "pip install 'vitkd_ds[plot]'" in done.stderr
    assert "plain0" in run_command(*command).stdout


@pytest.mark.parametrize("count", [2, 12])
def test_each_run_has_its_own_curve_and_colour(runs, count):
    unfinish(runs / "taught0")
    folders = [runs / "plain0", runs / "taught0"]
    for number in range(2, count):
        folders.append(Path(shutil.copytree(runs / "plain0", runs / f"copy{number}")))
    figure = draw(read_results(list(map(str, folders))))
    accuracy, loss = figure.axes
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [folder.name for folder in folders]
    assert len({line.get_color() for line in accuracy.lines}) == len(accuracy.lines) == len(loss.lines) == count
    assert [line.get_color() for line in accuracy.lines] == [line.get_color() for line in loss.lines]
    assert accuracy.lines[0].get_xdata() == pytest.approx([1, 2]) and list(accuracy.lines[1].get_xdata()) == [1]
    lines = metrics_of(folders[0])
    assert list(accuracy.lines[0].get_ydata()) == [line["val_top1"] for line in lines if "val_top1" in line]
    logged = [line for line in lines if "total" in line]
    assert list(loss.lines[0].get_ydata()) == [line["total"] for line in logged]
    assert loss.lines[0].get_xdata() == pytest.approx([line["step"] / 7 for line in logged])
    assert "(%)" in accuracy.get_ylabel() and all("(epochs)" in axes.get_xlabel() for axes in figure.axes)
