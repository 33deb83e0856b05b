"""The three lines printed after a run: its accuracy, the path of its student, and a command to run next."""

import shlex
from contextlib import suppress
from pathlib import Path

from vitkd_ds.commands.compare.runs import Result, read_results
from vitkd_ds.config import teachers
from vitkd_ds.config.metrics import VAL_METRICS
from vitkd_ds.config.run_folder import CONFIG, DONE, STUDENT, read_json

OF_DISTILLATION = ("recipe", "teacher", "losses")
"""Sections of settings that may differ between a distilled run and its baseline, a run without a teacher."""
OF_FEATURES = ("knn_top1", "cka")
"""Metrics reported for a student without a classifier."""


def ending(run: str | Path) -> str:
    """Return the three lines to print after a run. Paths in them start with `run` as the user wrote it."""
    folder = Path(run)
    (result,) = read_results([str(folder)], must_be_evaluated=False)
    plain = _plain_run_beside(result) if result.evaluation and teachers.read(result.config["run"]) else None
    also = f" {shlex.quote(str(plain.folder))}" if plain else ""
    lines = [
        f"accuracy: {_accuracy(result, plain)}" if result.evaluation else f"features: {_features(result)}",
        f"student: {folder / STUDENT}",
        f"next: vitkd-ds report {shlex.quote(str(folder))}{also}",
    ]
    return "\n".join(lines)


def _accuracy(result: Result, plain: Result | None) -> str:
    low, high = result.top1_interval
    text = f"{result.top1:.2f} % top-1 on {result.num_images:,} images, 95 % interval {low:.2f} to {high:.2f}"
    return text + (f"; {result.top1 - plain.top1:+.2f} points over {plain.folder} (no teacher)" if plain else "")


def _features(result: Result) -> str:
    summary = result.summary or {}
    values = [(VAL_METRICS[name], summary.get(VAL_METRICS[name].summary)) for name in OF_FEATURES]
    known = [f"{metric.chart} {value:.{metric.digits}f} {metric.unit}".strip() for metric, value in values if value]
    return ", ".join(known) or "not evaluated"


def _plain_run_beside(result: Result) -> Result | None:
    """Return the baseline of a run: a finished run without a teacher in the same parent folder; None if there is none.

    A baseline has the same images and seed. Its settings may differ only in the sections OF_DISTILLATION.
    """
    here = result.folder.resolve()
    for folder in sorted(result.folder.parent.iterdir()):
        # Skip folders that are not runs or come from an unknown version.
        with suppress(OSError, ValueError):
            if folder.resolve() == here or not (folder / DONE).exists():
                continue
            if teachers.read(read_json(folder / CONFIG, {"run": dict})["run"]):
                continue
            (other,) = read_results([str(folder)])
            if other.is_final and other.seed == result.seed and _differ_in_distillation(result, other):
                return other
    return None


def _differ_in_distillation(result: Result, other: Result) -> bool:
    own, others = result.settings, other.settings
    changed = {key for key in own.keys() | others.keys() if own.get(key) != others.get(key)}
    is_of_distillation = all(key.partition(".")[0] in (*OF_DISTILLATION, teachers.MANY) for key in changed)
    return is_of_distillation and not result.other_images(other)
