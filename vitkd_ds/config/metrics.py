"""Declarations of the evaluation metrics, which `vitkd_ds.train` computes.

metrics.jsonl, progress lines, trackers and `watch` name a metric `val_NAME`; `eval` prints it as NAME. An undeclared
metric, such as one from another package's loss term, is only logged and printed.
"""

from dataclasses import dataclass
from typing import Literal

PREFIX = "val_"
"""Prefix of a metric's name in metrics.jsonl."""
EVALUATED = "val_num_images"
"""Key that occurs only in the evaluation lines of metrics.jsonl."""


@dataclass(frozen=True)
class Metric:
    """Declaration of an evaluation metric. An output omits the metric if its field, such as `chart`, is empty."""

    said: str = ""
    """Name on a model card."""
    unit: str = ""
    digits: int = 4
    """Decimals in printed output."""
    is_higher_better: bool = True
    most_certain: int = 0
    """Greatest number of classes for which the value is always 100 %. Tables and cards then omit it."""
    has_interval: bool = False
    """Whether the metric is a percentage of the validation images, so that Wilson's interval is valid."""
    chart: str = ""
    """Chart title in a report."""
    dashed_in: str = ""
    """Name of another metric, whose chart also shows this metric as a dashed curve."""
    tile: str = ""
    """Label of the metric's tile at the top of a report."""
    column: tuple[str, str] | None = None
    """Two lines of the column heading in the table of `compare`."""
    csv: str = ""
    """Column name in the CSV of `compare`."""
    summary: str = ""
    """Key in summary.json."""
    summarized_for: Literal["", "classes", "features"] = ""
    """Kind of student whose summary.json always has the key, with null if there is no value. classes: with a
    classifier. features: headless."""
    decides_for: Literal["", "classes", "features"] = ""
    """Kind of student that uses this metric to select its best checkpoint."""

    def says(self, num_classes: int) -> bool:
        """Return whether the metric says something about a student with this number of classes."""
        return not 0 < num_classes <= self.most_certain

    def is_better(self, value: float, other: float) -> bool:
        """Return whether `value` is better than `other`."""
        return value > other if self.is_higher_better else value < other


VAL_METRICS = {
    "top1": Metric(
        said="top-1 %",
        unit="%",
        digits=2,
        has_interval=True,
        chart="Validation top-1",
        column=("student top-1 %", "[95 % interval]"),
        csv="student_top1_percent",
        summary="student_top1",
        summarized_for="classes",
        decides_for="classes",
    ),
    "top5": Metric(
        said="top-5 %",
        unit="%",
        digits=2,
        most_certain=5,
        has_interval=True,
        column=("top-5", "%"),
        csv="student_top5_percent",
        summary="student_top5",
        summarized_for="classes",
    ),
    "teacher_top1": Metric(
        said="teacher top-1 %",
        unit="%",
        digits=2,
        has_interval=True,
        dashed_in="top1",
        tile="teacher top-1",
        column=("teacher", "top-1 %"),
        csv="teacher_top1_percent",
        summary="teacher_top1",
        summarized_for="classes",
    ),
    "agreement": Metric(
        said="agreement with the teacher, %",
        unit="%",
        digits=2,
        has_interval=True,
        chart="Agreement with the teacher",
        tile="both models name the same class",
        column=("agree-", "ment %"),
        csv="agreement_percent",
        summary="agreement",
        summarized_for="classes",
    ),
    "kl": Metric(
        said="KL divergence of the student from the teacher, nats",
        unit="nats",
        is_higher_better=False,
        chart="KL(teacher || student)",
    ),
    "cka": Metric(
        said="linear CKA with the teacher's pooled features",
        chart="CKA with the teacher",
        tile="CKA with the teacher",
        summary="cka",
        summarized_for="features",
        decides_for="features",
    ),
    "cka_patches": Metric(
        said="linear CKA with the teacher's patch tokens",
        chart="CKA of patch tokens",
        summary="cka_patches",
        summarized_for="features",
    ),
    "cosine": Metric(
        said="cosine similarity with the teacher's pooled features, transformed as in training (uses adapters that are "
        "not exported)",
        chart="Cosine with the target",
        summary="cosine",
    ),
    "cosine_patches": Metric(
        said="the same cosine similarity for patch tokens",
        chart="Cosine of patch tokens",
        summary="cosine_patches",
    ),
    "knn_top1": Metric(
        said="k-NN top-1 % on pooled features, on separate labelled images",
        unit="%",
        digits=2,
        chart="k-NN top-1",
        tile="k-NN top-1",
        summary="knn_top1",
    ),
    "probe_top1": Metric(unit="%", digits=2),
    "probe_lr": Metric(),
}
"""Every declared metric by name, in the order of reports and model cards."""


def digits_of(name: str) -> int:
    """Return the number of decimals for printing a metric (METRIC or METRIC/TEACHER); 2 for an undeclared metric."""
    metric = VAL_METRICS.get(name.partition("/")[0])
    return metric.digits if metric else 2


def summary_of(result: dict[str, float], kind: Literal["classes", "features"]) -> dict[str, float | None]:
    """Return the entries of summary.json for an evaluation of this kind of student, additional teachers last."""
    summary = {
        metric.summary: result.get(name)
        for name, metric in VAL_METRICS.items()
        if metric.summarized_for == kind or (metric.summary and not metric.summarized_for and name in result)
    }
    for name, value in result.items():
        metric, _, teacher = name.partition("/")
        if teacher and metric in VAL_METRICS and VAL_METRICS[metric].summary:
            summary[f"{VAL_METRICS[metric].summary}/{teacher}"] = value
    return summary


def deciding(kind: Literal["classes", "features"]) -> str:
    """Return the name of the metric that selects the best checkpoint of this kind of student."""
    return next(name for name, metric in VAL_METRICS.items() if metric.decides_for == kind)
