"""Data of the charts in a report: points, healthy ranges, and events such as restarts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.config.metrics import EVALUATED, PREFIX, VAL_METRICS
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CHECKPOINTS, pointer, tags
from vitkd_ds.train.health import MOST_OF_TOTAL, parts_of_total
from vitkd_ds.train.schedule import loss_weights_at

MOST_POINTS = 1000
"""Maximum number of points of a curve. See `thinned` for longer curves."""
MOST_MEANS = 100
"""Number of intervals into which a curve is divided for means. The means are drawn only if the curve has more than two
points per interval."""
CHARTS = {PREFIX + name: (metric.chart, metric.unit) for name, metric in VAL_METRICS.items() if metric.chart}
CHARTS |= {"total": ("Total loss", "")}
"""Metric -> title and unit of its chart. These charts come before the charts of the loss terms."""
MORE_CHARTS = {
    "grad_norm": ("Gradient norm before clipping", ""),
    "lr": ("Learning rate", ""),
    "images_per_s": ("Training speed", "images/s"),
    "data_wait_s": ("Waiting for data per step", "s"),
    "mfu": ("Model FLOPs utilisation (MFU)", ""),
    "memory_gib": ("Peak memory of rank 0", "GiB"),
    "images_skipped": ("Images skipped since the start", ""),
    "val_images_skipped": ("Validation images skipped", ""),
}
"""Metric -> title and unit of its chart. These charts come after the charts of the loss terms."""
NO_TERMS = {"step", "epoch", "s_per_step", "tflops", *CHARTS, *MORE_CHARTS}
"""Keys of a training line in metrics.jsonl that are not loss terms."""


@dataclass(frozen=True)
class Series:
    """One curve in a chart."""

    run: int
    """Index of the curve's run among the runs of the report."""
    name: str
    steps: list[int]
    values: list[float]
    mean_steps: list[float]
    means: list[float]
    """Mean value of each interval. Both lists of means are empty if the curve is short (see MOST_MEANS)."""
    dash: bool = False


@dataclass(frozen=True)
class Chart:
    """Chart of one metric over the training steps."""

    key: str
    title: str
    unit: str
    series: list[Series] = field(default_factory=list)
    note: str = ""
    zone: tuple[float | None, float | None] | None = None
    """Lower and upper end of the healthy range, which is shaded; None means that an end is unbounded."""
    is_log: bool = False


def charts_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return all charts that have at least one point, in the form that page.js reads."""
    terms = dict.fromkeys(
        key
        for result in results
        for line in result.lines
        if EVALUATED not in line
        for key in line
        if key not in NO_TERMS
    )
    titles = CHARTS | {term: (f"Loss term {term}, unweighted", "") for term in terms} | MORE_CHARTS
    charts = []
    for key, (title, unit) in titles.items():
        series = [one for number, result in enumerate(results) if (one := _series(number, result, key))]
        extra: dict[str, Any] = {}
        for name in [name for name, metric in VAL_METRICS.items() if PREFIX + metric.dashed_in == key]:
            teachers = (_series(i, result, PREFIX + name, dash=True) for i, result in enumerate(results))
            series += [one for one in teachers if one]
            extra = {"note": "dashed: teacher"} if any(one.dash for one in series) else {}
        if key == "grad_norm":
            extra = _clipping(results[0]) | {"is_log": True}
        charts += [Chart(key, title, unit, series, **extra)] if series else []
    shares = _shares(results[0])
    place = next((i for i, chart in enumerate(charts) if chart.key == "grad_norm"), len(charts))
    return [asdict(chart) for chart in (*charts[:place], *([shares] if shares else []), *charts[place:])]


def _series(number: int, result: Result, key: str, *, dash: bool = False) -> Series | None:
    points = [(line["step"], line[key]) for line in result.lines if isinstance(line.get(key), int | float)]
    if not points:
        return None
    return _drawn(number, f"{result.name} (teacher)" if dash else result.name, points, dash=dash)


def _drawn(number: int, name: str, points: Sequence[tuple[int, float]], *, dash: bool = False) -> Series:
    steps, values = map(list, zip(*thinned(points)))
    means = means_of(points) if len(points) > 2 * MOST_MEANS else []
    return Series(number, name, steps, values, *([mean[i] for mean in means] for i in range(2)), dash=dash)


def means_of(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Divide the points into MOST_MEANS intervals, and return the mean step and mean value of each interval."""
    ends = [i * len(points) // MOST_MEANS for i in range(MOST_MEANS + 1)]
    stretches = (points[first:end] for first, end in zip(ends, ends[1:]))
    return [tuple(float(f"{fmean(each):.6g}") for each in zip(*stretch)) for stretch in stretches]


def thinned(points: Sequence[tuple[int, float]]) -> Sequence[tuple[int, float]]:
    """Return at most MOST_POINTS of the points, which are ordered by step.

    If there are more, divide them into intervals, and keep the lowest and highest point of each interval and the last
    point of the curve.
    """
    if len(points) <= MOST_POINTS:
        return points
    stretches = (MOST_POINTS - 1) // 2
    kept = {len(points) - 1}
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        kept |= {min(stretch, key=lambda n: points[n][1]), max(stretch, key=lambda n: points[n][1])}
    return [points[n] for n in sorted(kept)]


def _clipping(result: Result) -> dict[str, Any]:
    most = result.config["run"].get("optim", {}).get("clip_grad_norm")
    if not isinstance(most, int | float) or not most:
        return {}
    return {"zone": (None, float(most)), "note": f"shaded: up to {most:g} (optim.clip_grad_norm), not clipped"}


def _shares(result: Result) -> Chart | None:
    """Return a chart of each weighted loss term as a percentage of the run's total loss.

    Return None if the run has only one term, or if its settings are from an incompatible version.
    """
    try:
        run = from_dict(Run, result.config["run"])
    except ValueError:
        return None
    points: dict[str, list[tuple[int, float]]] = {}
    for line in (line for line in result.lines if isinstance(line.get("total"), float) and line["total"] > 0):
        weights = loss_weights_at(line["step"] - 1, run, result.config["plan"]["total_steps"])
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float)}
        for key, part in parts_of_total(numbers, weights).items():
            points.setdefault(key, []).append((line["step"], 100 * part / line["total"]))
    if len(points) < 2:
        return None
    series = [_drawn(0, key, found) for key, found in points.items()]
    note = f"{result.name}; shaded: up to {100 * MOST_OF_TOTAL:.0f} %. A term above this dominates the total loss."
    return Chart("shares", "Weighted terms, percentage of the total", "%", series, note, (0.0, 100 * MOST_OF_TOTAL))


def marks_of(result: Result) -> list[dict[str, Any]]:
    """Return the events of a run: restarts, checkpoints still in the run folder, and steps with skipped images."""
    starts = [start for start in result.config.get("starts") or [] if isinstance(start, dict)]
    # If an earlier version started the run without recording it, the first recorded start is a restart.
    starts = [start for start in starts if isinstance(start.get("step"), int)]
    steps = [(start["step"], start.get("time", "")) for number, start in enumerate(starts) if number or start["step"]]
    if not starts and result.config.get("resumed_step"):  # from a version that recorded only the last launch
        steps = [(result.config["resumed_step"], "")]
    marks = [
        {"step": step, "kind": "restart", "text": f"resumed at step {step} {time}".strip()} for step, time in steps
    ]
    folder = result.folder / CHECKPOINTS
    best = pointer(folder, "best")
    for tag in reversed(tags(folder)):
        step = int(tag.removeprefix("step"))
        marks.append({"step": step, "kind": "checkpoint", "text": f"checkpoint {tag}{', best' * (tag == best)}"})
    before = 0
    for line in result.lines:
        count = line.get("images_skipped")
        if isinstance(count, int | float):
            if count > before:
                marks.append({"step": line["step"], "kind": "skipped", "text": f"{count:g} images skipped so far"})
            before = count
    return marks
