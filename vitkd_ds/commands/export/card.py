"""The model card of an exported student, from what its run folder says. Names and paths that users gave are shown as
text, and of paths the last part alone, as those above it are of one machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitkd_ds.commands.compare.runs import read_lines
from vitkd_ds.commands.exported import Exported
from vitkd_ds.commands.show import one_line
from vitkd_ds.config.metrics import EVALUATED, PREFIX, VAL_METRICS, Metric
from vitkd_ds.config.reading import load_json
from vitkd_ds.config.run_folder import CONFIG
from vitkd_ds.train.statistics import wilson_interval

MOST_CLASSES = 50
"""Class names on a card; config.json has all."""


def model_card(exported: Exported, *, name: str, source: str) -> str:
    """Write README.md: a head for the hub, then data, recipe, teacher and its licence, results with the number of
    images, use, and the lines by which timm loads the student from `source`."""
    classes = exported.classes
    head = {
        "library_name": "timm",
        "pipeline_tag": "image-classification" if classes else "image-feature-extraction",
        "tags": ["timm", "vitkd_ds", "image-classification" if classes else "image-feature-extraction"],
    }
    config = load_json(exported.run_folder / CONFIG) if exported.run_folder else {}
    parts = [
        _introduction(exported, config, name),
        _results(exported),
        _loading(exported, source),
        _training(exported, config),
        _teacher(exported),
        _use(exported),
    ]
    # JSON is YAML, in which no name needs quotes of another kind.
    lines = [f"{key}: {json.dumps(value)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---", "", "\n\n".join(parts), ""])


def code(text: Any) -> str:
    """Text of a user as Markdown that is shown as it is, in one line, also inside a table."""
    return f"`{one_line(str(text)).replace('`', chr(39)).replace('|', '/')}`"


def _introduction(exported: Exported, config: dict[str, Any], name: str) -> str:
    described, classes = exported.description, exported.classes
    cost = (config.get("models") or {}).get("student")
    size = f", {cost['parameters'] / 1e6:.2f} M parameters and {cost['gflops']:.3g} GFLOPs an image" if cost else ""
    what = f"A classifier of {len(classes)} classes" if classes else "A model of features, without a classifier"
    return (
        f"# {one_line(name)}\n\n{what}: timm's {code(described['model'])} for images of {described['image_size']} "
        f"pixels{size}. It was trained with vitkd_ds, and this card was written from its run."
    )


def _results(exported: Exported) -> str:
    """The evaluation of the step that is exported, if there is one."""
    step, lines = exported.description.get("step"), []
    if exported.run_folder:
        lines = [line for line in read_lines(exported.run_folder) if line["step"] == step and EVALUATED in line]
    if not lines:
        return "## Results\n\nThis student was not evaluated where it comes from."
    found, num_images = lines[-1], int(lines[-1][EVALUATED])
    said = {PREFIX + name: metric for name, metric in VAL_METRICS.items() if metric.said}
    known = {key: metric for key, metric in said.items() if found.get(key) is not None}
    rows = [f"| {metric.said} | {_value(metric, found[key], num_images)} |" for key, metric in known.items()]
    intro = (
        f"On {num_images:,} validation images, which it was not trained on unless the data overlap; one run (n = 1)."
    )
    return "\n".join(["## Results", "", intro, "", "| | value |", "|---|---|", *rows])


def _value(metric: Metric, value: float, num_images: int) -> str:
    if not metric.has_interval:
        return f"{value:.4f}"
    low, high = wilson_interval(num_images, round(value * num_images / 100))
    return f"{value:.2f} (95 % interval over images {low:.2f} to {high:.2f})"


def _loading(exported: Exported, source: str) -> str:
    answer = "features = model(transform(image)[None])[0]"
    if exported.classes:
        answer = "\n".join([
            "best = model(transform(image)[None]).softmax(-1)[0].argmax().item()",
            'print(model.pretrained_cfg["label_names"][best])',
        ])  # fmt: skip
    return f"""## How to load

```python
import timm
from PIL import Image

model = timm.create_model({json.dumps(source)}, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open("image.jpg").convert("RGB")
{answer}
```"""


def _training(exported: Exported, config: dict[str, Any]) -> str:
    described, run = exported.description, exported.run
    rows = [("recipe", code(described.get("recipe", "not known"))), ("step", described.get("step", "not known"))]
    if run:
        terms = ", ".join(f"{name} {term.weight:g}" for name, term in run.losses.active().items())
        versions = ", ".join(f"{package} {version}" for package, version in (config.get("versions") or {}).items())
        rows += [
            ("training images", code(Path(run.data.train).name)),
            ("validation images", code(Path(run.data.val).name)),
            ("labels", "seen in training" if exported.classes else "not seen in training"),
            ("loss terms and weights", code(terms)),
            ("images per step", run.global_batch_size),
            ("learning rate", f"{run.optim.lr:g} for {run.optim.lr_batch_size} images"),
            ("weights", "moving average" if described.get("weights") == "ema" else "those of the step"),
            ("weights at the start", code(Path(run.student.init).name or "random")),
            ("seed", run.seed),
            ("versions", code(versions)),
        ]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _teacher(exported: Exported) -> str:
    teacher = exported.description.get("teacher")
    if not teacher:
        return "## Teacher\n\nNone: the student was trained on its images alone, as far as its description says."
    licence = teacher.get("license")
    stated = f"timm states the licence {code(licence)} for its weights" if licence else "No licence is stated for it"
    return (
        f"## Teacher\n\n{code(teacher['model'])}. {stated}. Whether a licence reaches students, and what that of the "
        "images allows, is for whoever publishes this model to settle; no licence is given here for that reason."
    )


def _use(exported: Exported) -> str:
    classes = exported.classes
    text = "For k-NN, a linear probe or retrieval on images like those that it was trained on."
    if classes:
        text = (
            f"To tell images like those that it was trained on apart, as these classes: {_listed(classes)}. It names "
        )
        text += "one of them for any image, whatever that shows."
    return f"## Intended use\n\n{text} It was not examined for bias, nor on images of other kinds."


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - MOST_CLASSES:,} more" if len(classes) > MOST_CLASSES else ""
    return ", ".join(map(code, classes[:MOST_CLASSES])) + more
