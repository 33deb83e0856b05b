"""No name in a CSV is a formula for a spreadsheet."""

import csv
import io

import pytest

from vitkd_ds.commands.compare.table import safe_cell
from vitkd_ds.commands.predict import _csv_line
from vitkd_ds.commands.sweep.table import Row, csv_text


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x.png", "@sum", "\t=1", "\r=1", "=1,2"])
def test_text_that_starts_like_a_formula_stays_text(text):
    assert safe_cell(text) == f"'{text}"
    assert next(csv.reader(io.StringIO(_csv_line([text, "0.5"]), newline=""))) == [f"'{text}", "0.5"]


@pytest.mark.parametrize("value", ["-0.25", "+1e-3", "-inf", "a=b", "", None, -3, 0.5, "x-y"])
def test_numbers_and_other_texts_stay(value):
    assert safe_cell(value) == value


def test_the_names_in_a_sweeps_table_are_text():
    values = dict.fromkeys(Row.__dataclass_fields__, None) | {next(iter(Row.__dataclass_fields__)): "=cmd"}
    assert csv_text([Row(**values)]).splitlines()[1].startswith("'=cmd,")
