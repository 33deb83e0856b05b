"""Format the rows of a comparison as a text table and as CSV."""

import csv
import io
from itertools import repeat
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.compare.seeds import WIDEST, Group
from vitkd_ds.commands.usage import columns
from vitkd_ds.config.metrics import PREFIX, VAL_METRICS, Metric, deciding

if TYPE_CHECKING:
    from vitkd_ds.commands.compare.speed import Speeds  # imports torch

COST = (
    ("params", "M"),
    ("", "GFLOPs"),
    ("training", "images/s"),
    ("training", "time"),
    ("", "ranks"),
    ("inference", "images/s"),
    ("x its", "teacher"),
)
LONG_S = 7200
"""Shortest time, in seconds, that is shown in hours."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of a cell that a spreadsheet would read as a formula."""


def safe_cell(value: object) -> object:
    """Return a value for a CSV cell. Text that a spreadsheet would read as a formula gets an apostrophe in front."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def table_text(results: Sequence[Result], speeds: "Speeds | None") -> str:
    """Return a line with the number of validation images and the inference device, and below it a table of the runs."""
    counts = sorted({result.num_images for result in results})
    images = " to ".join(f"{count:,}" for count in dict.fromkeys((counts[0], counts[-1])))
    about = f"{images} validation images" + (f"; inference on {speeds.device}" if speeds else "")
    rows = table_rows(results, speeds)
    width = columns(WIDEST)
    lines = _lines(rows)
    # A table that is too wide becomes two, accuracy and cost. Each of them is split again if needed.
    if max(map(len, lines)) > width:
        cut = len(rows[0]) - len(COST)
        lines = [*_pieces([row[:cut] for row in rows], width), ""]
        lines += _pieces([(row[0], *row[cut:]) for row in rows], width)
    return "\n".join([about, "", *lines])


def _pieces(rows: Sequence[tuple[Any, ...]], width: int) -> list[str]:
    """Split a table between columns into tables at most `width` characters wide, and return their lines.

    The first column of each of these tables has the names of the runs.
    """
    last = len(rows[0])
    end = next((end for end in range(last, 2, -1) if max(map(len, _lines([row[:end] for row in rows]))) <= width), 2)
    lines = _lines([row[:end] for row in rows])
    return lines if end == last else [*lines, "", *_pieces([(row[0], *row[end:]) for row in rows], width)]


def table_rows(results: Sequence[Result], speeds: "Speeds | None") -> list[tuple[Any, ...]]:
    """Return the header row and one row per run. A cell of the header is a pair of texts, one for each header line."""
    # A metric is left out if it says nothing about any of the runs.
    metrics = {
        name: metric
        for name, metric in VAL_METRICS.items()
        if metric.column and any(metric.says(result.num_classes) for result in results)
    }
    heads = (("", "run"), *(metric.column for metric in metrics.values()), *COST)
    return [heads] + [
        (*_accuracy(result, metrics), *_cost(result, *both))
        for result, both in zip(results, speeds.images_per_s if speeds else repeat((None, None)))
    ]


def _accuracy(result: Result, metrics: Mapping[str, Metric]) -> tuple[str, ...]:
    low, high = result.top1_interval
    found = {name: result.evaluation.get(PREFIX + name) for name in metrics if metrics[name].says(result.num_classes)}
    numbers = {name: _number(found.get(name), f".{metric.digits}f") for name, metric in metrics.items()}
    numbers[deciding("classes")] += f" [{low:.2f}, {high:.2f}]"
    return (result.name, *numbers.values())


def _cost(result: Result, student_images_per_s: float | None, teacher_images_per_s: float | None) -> tuple[str, ...]:
    parameters = result.size("student", "parameters")
    time = _time(result.training_s) if result.is_final else f"at step {result.evaluation['step']}"
    times = student_images_per_s / teacher_images_per_s if teacher_images_per_s else None
    return (
        _number(parameters and parameters / 1e6, ".2f"),
        _number(result.size("student", "gflops"), ".3g"),
        _number(result.images_per_s, ",.0f"),
        time,
        str(result.config["world_size"]),
        _number(student_images_per_s, ",.0f"),
        _number(times, ".1f"),
    )


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds:.0f} s" if seconds < LONG_S else f"{seconds / 3600:.1f} h"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _lines(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return two header lines and one line per run, with names left-aligned and numbers right-aligned."""
    top, bottom = zip(*rows[0])
    cells = rows[1:]
    rows = [top, bottom, *cells]
    widths = [max(len(row[i]) for row in rows) for i in range(len(top))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]


def csv_text(results: Sequence[Result], groups: Sequence[Group], speeds: "Speeds | None") -> str:
    """Return CSV with a header and one row per run. Unknown values are empty."""
    text = io.StringIO()
    for number, result in enumerate(results):
        both = speeds.images_per_s[number] if speeds else (None, None)
        row = _record(result, groups, *both) | {"inference_device": speeds.device if speeds else None}
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        if not number:
            writer.writeheader()
        writer.writerow({key: safe_cell(value) for key, value in row.items()})
    return text.getvalue().rstrip("\n")


def _record(
    result: Result, groups: Sequence[Group], student_images_per_s: float | None, teacher_images_per_s: float | None
) -> dict[str, Any]:
    found = result.evaluation
    low, high = result.top1_interval
    numbers = {metric.csv: found.get(PREFIX + name) for name, metric in VAL_METRICS.items() if metric.csv}
    group = next((number for number, group in enumerate(groups, start=1) if result in group.values()), None)
    # Names end in their unit because CSV has only one header line.
    return {
        "run": result.name,
        "folder": result.folder,
        "seed": result.seed,
        "group": group,
        "step": found["step"],
        "is_final": result.is_final,
        "num_images": result.num_images,
        "student_top1_percent": result.top1,
        "student_top1_low_percent": low,
        "student_top1_high_percent": high,
        **numbers,
        "student_parameters": result.size("student", "parameters"),
        "student_gflops": result.size("student", "gflops"),
        "teacher_parameters": result.size("teacher", "parameters"),
        "teacher_gflops": result.size("teacher", "gflops"),
        "training_images_per_s": result.images_per_s,
        "training_time_s": result.training_s,
        "ranks": result.config["world_size"],
        "student_inference_images_per_s": student_images_per_s,
        "teacher_inference_images_per_s": teacher_images_per_s,
        "inference_times_teacher": student_images_per_s / teacher_images_per_s if teacher_images_per_s else None,
    }
