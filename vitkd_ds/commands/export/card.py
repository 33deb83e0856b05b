"""Model card of an exported student, from its run folder.

User-supplied names and paths are escaped. Only the last part of a path is shown, because the rest is machine-specific.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from vitkd_ds.commands.compare.runs import read_lines
from vitkd_ds.commands.predict import Exported
from vitkd_ds.commands.show import one_line
from vitkd_ds.config import teachers
from vitkd_ds.config.metrics import EVALUATED, PREFIX, VAL_METRICS, Metric
from vitkd_ds.config.reading import load_json
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CONFIG
from vitkd_ds.config.selected import SELECT, is_selected
from vitkd_ds.train.statistics import wilson_interval

MOST_CLASSES = 50
"""Maximum number of class names on a card; config.json has all."""


def model_card(exported: Exported, *, name: str, source: str) -> str:
    """Return the text of README.md for the hub: how to load the student, and its results, training and teacher.

    Args:
        exported: the student.
        name: title of the card if the student is not in a run folder. Otherwise, the title is that folder's name.
        source: model name to pass to timm.create_model to load the student.
    """
    config = load_json(exported.run_folder / CONFIG) if exported.run_folder else {}
    evaluation = _evaluation(exported)
    num_images = int(evaluation.get(EVALUATED, 0))
    found = {metric: evaluation.get(PREFIX + name) for name, metric in VAL_METRICS.items() if metric.said}
    found = {metric: value for metric, value in found.items() if metric.says(len(exported.classes))}
    return _template().render(
        name=one_line(exported.run_folder.resolve().name if exported.run_folder else name),
        source=json.dumps(source),
        task="image-classification" if exported.classes else "image-feature-extraction",
        described=exported.description,
        classes=exported.classes,
        most_classes=MOST_CLASSES,
        cost=(config.get("models") or {}).get("student"),
        num_images=num_images,
        results=[
            (metric.said, _value(metric, value, num_images)) for metric, value in found.items() if value is not None
        ],
        training=_training(exported, config.get("versions") or {}),
        teachers=[*teachers.read(exported.description).values()],
    )


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    return environment.get_template("card.md")


def code(text: Any) -> str:
    """Return user-supplied text as one line of Markdown code that renders literally, also inside a table."""
    return f"`{one_line(str(text)).replace('`', chr(39)).replace('|', '/')}`"


def _evaluation(exported: Exported) -> dict[str, Any]:
    """Return the evaluation that the run made at this student's step; {} if there is none."""
    if not exported.run_folder:
        return {}
    step = exported.description.get("step")
    lines = [line for line in read_lines(exported.run_folder) if line["step"] == step and EVALUATED in line]
    return lines[-1] if lines else {}


def _value(metric: Metric, value: float, num_images: int) -> str:
    if not metric.has_interval:
        return f"{value:.4f}"
    low, high = wilson_interval(num_images, round(value * num_images / 100))
    return f"{value:.2f} (95 % interval from the images: {low:.2f} to {high:.2f})"


def _training(exported: Exported, versions: dict[str, str]) -> list[tuple[str, Any]]:
    described = exported.description
    rows = [("recipe", code(described.get("recipe", "unknown"))), ("step", described.get("step", "unknown"))]
    return rows + _settings(exported.run, exported, versions) if exported.run else rows


def initial_weights(init: str) -> str:
    """Return a card's text for `student.init`. A path is shown without its folders, because they are private."""
    kind = SELECT if is_selected(init) else ""
    return f"{kind}{Path(init.removeprefix(kind)).name}" or "random"


def _settings(run: Run, exported: Exported, versions: dict[str, str]) -> list[tuple[str, Any]]:
    terms = ", ".join(f"{name} {term.weight:g}" for name, term in run.losses.active().items())
    return [
        ("training images", code(Path(run.data.train).name)),
        ("validation images", code(Path(run.data.val).name)),
        ("labels", "used in training" if exported.classes else "not used in training"),
        ("loss terms and weights", code(terms)),
        ("images per step", run.global_batch_size),
        ("learning rate", f"{run.optim.lr:g} per {run.optim.lr_batch_size} images"),
        ("weights", "moving average" if exported.description.get("weights") == "ema" else "last step (no averaging)"),
        ("initial weights", code(initial_weights(run.student.init))),
        ("seed", run.seed),
        ("versions", code(", ".join(f"{package} {version}" for package, version in versions.items()))),
    ]
