"""Evaluation metrics: each is declared here once, and computed in `vitkd_ds.train`.

metrics.jsonl has a metric as `val_NAME`, and so have the progress lines, the trackers and `watch`. `eval` prints it as
NAME. A metric that is not declared, as a loss term of another package may have, is logged and printed only.
"""

from dataclasses import dataclass
from typing import Literal

PREFIX = "val_"
"""Beginning of a metric's name in metrics.jsonl."""
EVALUATED = "val_num_images"
"""Key that only the lines of evaluations have."""


@dataclass(frozen=True)
class Metric:
    """Declaration of an evaluation metric. An empty place leaves it out there."""

    said: str = ""
    """Words on a model card."""
    unit: str = ""
    digits: int = 4
    """Decimals where a command prints it."""
    is_higher_better: bool = True
    has_interval: bool = False
    """Whether it is a percentage of the validation images, so that Wilson's interval holds for it."""
    chart: str = ""
    """Title of its chart in a report."""
    dashed_in: str = ""
    """Metric of the student in whose chart it is a dashed curve."""
    tile: str = ""
    """Words of its tile at the top of a report."""
    column: tuple[str, str] | None = None
    """Two lines over its column of `compare`."""
    csv: str = ""
    """Its name in the CSV of `compare`."""
    summary: str = ""
    """Its name in summary.json."""
    summarized_for: Literal["", "classes", "features"] = ""
    """Students that have it in summary.json even where it is unknown: with a classifier, or without."""
    decides_for: Literal["", "classes", "features"] = ""
    """Students whose best checkpoint it chooses."""

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another one."""
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
        has_interval=True,
        column=("top-5", "%"),
        csv="student_top5_percent",
        summary="student_top5",
        summarized_for="classes",
    ),
    "teacher_top1": Metric(
        said="top-1 % of the teacher",
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
        said="linear CKA with its patch tokens",
        chart="CKA of patch tokens",
        summary="cka_patches",
        summarized_for="features",
    ),
    "cosine": Metric(
        said="cosine of the pooled features with the teacher's, transformed as in training, through adapters that are "
        "not exported",
        chart="Cosine with the target",
        summary="cosine",
    ),
    "cosine_patches": Metric(
        said="the same cosine of the patch tokens",
        chart="Cosine of patch tokens",
        summary="cosine_patches",
    ),
    "knn_top1": Metric(
        said="top-1 % by k-NN on the pooled features, on labelled images of its own",
        unit="%",
        digits=2,
        chart="k-NN top-1",
        tile="k-NN top-1",
        summary="knn_top1",
    ),
    "probe_top1": Metric(unit="%", digits=2),
    "probe_lr": Metric(),
}
"""Every declared metric by its name, in the order in which reports and cards show them."""


def digits_of(name: str) -> int:
    """Return the decimals of a number that a command prints, of METRIC or METRIC/TEACHER; 2 of no declared metric."""
    metric = VAL_METRICS.get(name.partition("/")[0])
    return metric.digits if metric else 2


def summary_of(result: dict[str, float], kind: Literal["classes", "features"]) -> dict[str, float | None]:
    """Return an evaluation's numbers as summary.json has them, for a student of a kind; further teachers come last."""
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
    """Return the name of the metric that chooses the best checkpoint of a student of a kind."""
    return next(name for name, metric in VAL_METRICS.items() if metric.decides_for == kind)
