"""Times, colours and speeds of a comparison, checked by hand."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from vitkd_ds.commands.compare.plot import colours_of
from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.table import _time


@pytest.mark.parametrize(
    "seconds, text", [(None, "-"), (0.4, "0 s"), (3600, "3600 s"), (7199, "7199 s"), (7200, "2.0 h"), (9000, "2.5 h")]
)
def test_times_are_in_seconds_up_to_two_hours(seconds, text):
    assert _time(seconds) == text


def test_up_to_ten_curves_have_plain_colours_and_more_use_a_rainbow():
    for count, name in ((1, "tab10"), (10, "tab10"), (11, "turbo")):
        colours = colours_of(count)
        last = count - 1 if name == "tab10" else 1.0
        assert len({*colours}) == count
        assert (colours[0], colours[-1]) == (matplotlib.colormaps[name](0), matplotlib.colormaps[name](last))


def test_the_speed_is_the_whole_runs_or_else_the_last_logged():
    lines = [{"step": 1, "images_per_s": 5.0}, {"step": 2, "images_per_s": 7.0}, {"step": 3}]
    result = Result(Path("x"), "x", {"run": {"global_batch_size": 8}}, lines, {}, {"steps": 9, "images_per_s": 4.0})
    assert (result.images_per_s, result.training_s) == (4, 18)
    going = replace(result, summary=None)
    assert (going.images_per_s, going.training_s) == (7, None)
    assert replace(going, lines=[]).images_per_s is None
