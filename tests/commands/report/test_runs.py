"""Groups of runs over seeds, and which run the report compares the first one with."""

from dataclasses import replace

import numpy as np
import pytest

from tests.commands.report.written import made
from vitkd_ds.commands.report.answers import Answers, are_comparable
from vitkd_ds.commands.report.page import _other
from vitkd_ds.commands.report.runs import _cells, _name
from vitkd_ds.commands.sweep.table import Row

ANSWERS = Answers(1, ["a", "b"], np.arange(3), np.array([0, 1, 0]), np.zeros(3, int), np.ones(3), None, None)


@pytest.mark.parametrize("count, text", [(1, "r0"), (3, "r0, r1, r2"), (4, "r0, r1, r2 and 1 more")])
def test_a_group_names_three_runs(count, text):
    assert _name(2, {number: made(name=f"r{number}") for number in range(count)}) == f"group 2: {text}"


def test_a_difference_is_the_first_group_minus_this_one_with_its_interval_negated():
    row = Row("g", 2, 50.0, 40.0, 60.5, -1.5, -3.0, 0.25, 0.0341, None)
    assert _cells(row) == ["g", "2", "50.00", "[40.00, 60.50]", "+1.50", "[-0.25, +3.00]", "0.034"]
    alone = Row("g", 1, 50.0, None, None, 2.0, None, None, None, None)
    assert _cells(alone) == ["g", "1", "50.00", "-", "-2.00", "-", "-"]


@pytest.mark.parametrize(
    "change",
    [{"classes": ["a", "c"]}, {"image": np.arange(1, 4)}, {"label": np.array([0, 1, 1])}, {"image": np.arange(2)}],
)
def test_answers_of_other_classes_images_or_labels_are_not_compared(change):
    assert are_comparable(ANSWERS, replace(ANSWERS, student=np.ones(3, int)))
    assert not are_comparable(ANSWERS, replace(ANSWERS, **change))


def test_the_first_run_is_compared_with_one_of_other_settings_if_there_is_one():
    def run(lr, val):
        return made(run={"optim": {"lr": lr}, "data": {"train": "t", "val": "v"}}, images={"train": 1, "val": val})

    first, same, other, elsewhere = run(1, 7), run(1, 7), run(2, 7), run(2, 8)
    answers = [ANSWERS] * 4
    assert _other([first, same, other, elsewhere], answers) == 2
    assert _other([first, elsewhere, same, other], answers) == 3
    assert _other([first, elsewhere, same], answers[:3]) == 2
    assert _other([first, elsewhere], answers[:2]) is None
    assert _other([first, other], [ANSWERS, None]) is None and _other([first, other], [None, ANSWERS]) is None
