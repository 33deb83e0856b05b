"""Per-class accuracy of student and teacher, per-class difference from another run, and confusion matrix."""

from typing import Any

import numpy as np

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report.answers import Answers
from vitkd_ds.train.statistics import paired_interval, wilson_interval

MOST_BARS = 8
"""Maximum number of classes in the list of largest gains, and in the list of largest losses."""


def per_class(own: Answers, other: Result | None, other_answers: Answers | None) -> dict[str, Any]:
    """Return a row for each class that has images, and the confusion matrix, in the form that page.html reads.

    If another run is given, also return the difference from it and the classes with the largest differences.
    """
    heads = ["class", "images", "student top-1 %", "95 % interval"]
    if own.teacher is not None:
        heads += ["teacher top-1 %", "agreement %"]
    rows = _rows(own, other_answers)
    found: dict[str, Any] = {"class_heads": heads, "classes": rows, "confusion": _confusion(own), "whole": None}
    if other is None:
        return found
    heads += [f"difference from {other.name}, points", "95 % interval"]
    ranked = sorted(rows, key=lambda row: -row["points"])
    return found | {
        "other": other,
        "other_step": other_answers.step,
        "whole": difference(own.right(), other_answers.right()),
        "helped": [row for row in ranked if row["points"] > 0][:MOST_BARS],
        "hurt": [row for row in reversed(ranked) if row["points"] < 0][:MOST_BARS],
        "most_points_of_a_class": max(1e-9, *(abs(row["points"]) for row in rows)),
    }


def _rows(own: Answers, other: Answers | None) -> list[dict[str, Any]]:
    right = own.right()
    by_teacher = own.right("teacher") if own.teacher is not None else None
    by_other = other.right() if other else None
    rows = []
    for label, name in enumerate(own.classes):
        here = own.label == label
        count = int(here.sum())
        if not count:
            continue
        num_right = int(right[here].sum())
        row = {"name": name, "count": count, "top1": 100 * num_right / count}
        row["interval"] = wilson_interval(count, num_right)
        if by_teacher is not None:
            row["teacher"] = 100 * int(by_teacher[here].sum()) / count
            row["agreement"] = 100 * int((own.student == own.teacher)[here].sum()) / count
        if by_other is not None:
            row |= difference(right[here], by_other[here])
        rows.append(row)
    return rows


def difference(right: np.ndarray, by_other: np.ndarray) -> dict[str, float]:
    """Return the difference in accuracy between two models on the same images, with its 95 % interval, in points.

    Args:
        right: for each image, whether the first model is right.
        by_other: for each image, whether the second model is right.

    Returns:
        `points`, `low` and `high`: the difference and its interval. `gained`: number of images that only the first
        model gets right. `lost`: number of images that only the second model gets right.
    """
    gained = int((right & ~by_other).sum())
    lost = int((by_other & ~right).sum())
    low, high = paired_interval(len(right), gained, lost)
    points = 100 * (gained - lost) / len(right)
    return {"gained": gained, "lost": lost, "points": points, "low": low, "high": high}


def _confusion(own: Answers) -> dict[str, Any]:
    """Return the student's confusion matrix with class names, in the form that page.html reads."""
    labels, counts = own.confusion()
    is_whole = len(labels) == len(own.classes)
    names = [own.classes[label] for label in labels]
    rows = counts[:, : len(names)] if is_whole else counts
    heads = names if is_whole else [*names, "other"]
    return {"is_whole": is_whole, "heads": heads, "rows": list(zip(names, rows.tolist(), strict=True))}
