"""Facts about a run for a report: progress, key numbers, models, settings that differ from the recipe, versions."""

import json
import shlex
import time
from typing import Any

from vitkd_ds.checkpoint.folder import flattened
from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.config import teachers
from vitkd_ds.config.metrics import PREFIX, VAL_METRICS
from vitkd_ds.config.run import as_dict
from vitkd_ds.config.run_folder import METRICS
from vitkd_ds.recipes import RECIPES, build_run

OF_THE_FOLDER = {"recipe", "workdir", "resume", "extend", "debug"}
"""Settings that are not listed as differences from the recipe."""


def what_was_run(result: Result) -> dict[str, Any]:
    """Return the progress, key numbers, facts and settings of a run, in the form that page.html reads."""
    run = result.config["run"]
    return {
        "state": _state(result),
        "tiles": _tiles(result) if run["data"]["num_classes"] else _with_knn(_tiles(result)),
        "facts": _facts(result.config),
        "command": [shlex.quote(str(word)) for word in result.config.get("command") or []],
        "differences": _differences(run),
        "settings": json.dumps(run, indent=2),
    }


def _state(result: Result) -> dict[str, Any]:
    total = result.config["plan"].get("total_steps")
    step = max((line["step"] for line in result.lines), default=0)
    return {
        "step": step,
        "total": total or max(1, step),
        "of_total": f"{step:,} of {total:,} steps" if isinstance(total, int) else f"{step:,} steps",
        "age": _age(result),
        "now": time.strftime("%Y-%m-%d %H:%M"),
    }


def _age(result: Result) -> str:
    """Return a text that tells how long ago a run last wrote to metrics.jsonl, or "" if there is no such file."""
    try:
        seconds = max(0.0, time.time() - (result.folder / METRICS).stat().st_mtime)
    except OSError:
        return ""
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"; last log entry {text if seconds < 7200 else f'{seconds / 3600:.0f} hours'} before this report"


def _tiles(result: Result) -> list[tuple[str, str]]:
    found = result.evaluation
    tiles = []
    if found:
        low, high = result.top1_interval
        about = f"student top-1 on {result.num_images:,} images, 95 % interval [{low:.2f}, {high:.2f}], "
        tiles.append((f"{result.top1:.2f} %", f"{about}step {found['step']:,}"))
    for name, metric in VAL_METRICS.items():
        lines = [line for line in result.lines if isinstance(line.get(PREFIX + name), int | float)]
        # If a metric and the student's top-1 are from different evaluations, the metric is shown with its step.
        last = found if metric.summarized_for == "classes" else [{}, *lines][-1]
        if metric.tile and isinstance(last.get(PREFIX + name), int | float):
            about = "" if last is found else f", step {last['step']:,}"
            number = f"{last[PREFIX + name]:.{metric.digits}f} {metric.unit}".rstrip()
            tiles.append((number, metric.tile + about))
    if parameters := result.size("student", "parameters"):
        teacher = result.size("teacher", "parameters")
        part = f"; the teacher has {teacher / parameters:.1f} times as many" if teacher else ""
        tiles.append((f"{parameters / 1e6:.2f} M", f"parameters of the student{part}"))
    if result.images_per_s:
        tiles.append((f"{result.images_per_s:,.0f}", "images/s in training, all ranks"))
    return tiles


def _with_knn(tiles: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the tiles of a student without a classifier. The first tile is k-NN top-1, or a hint on measuring it."""
    knn = [tile for tile in tiles if tile[1].startswith(VAL_METRICS["knn_top1"].tile)]
    rest = [tile for tile in tiles if tile not in knn]
    how = "k-NN top-1. To measure it, train with --data.knn_train and --data.knn_val, or run vitkd-ds eval RUN --knn."
    return [*(knn or [("not measured", how)]), *rest]


def _facts(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the models, data, hardware and versions of a run as pairs of name and value."""
    run = config["run"]
    models = config.get("models") or {}
    facts = [("recipe", run.get("recipe", ""))]
    if models.get("student"):
        facts.append(("student", _model(run["student"], models["student"])))
    for name, cost in teachers.read(models).items():
        stated = cost.get("license") or "not stated by timm for these weights"
        facts.append((teachers.role_of(name), _model(teachers.read(run)[name], cost)))
        facts.append((f"licence of {teachers.called(name)}", stated))
    if not teachers.read(run):
        facts.append(("teacher", "none: training without a teacher"))
    facts.append(("data", f"{run['data']['train']} and {run['data']['val']}, {run['data']['num_classes']} classes"))
    for number, start in enumerate(start for start in config.get("starts") or [] if isinstance(start, dict)):
        about = "resumed" if number or start.get("step") else "start"
        where = f"step {start.get('step')}, {start.get('time')}"
        facts.append((about, f"{where}, {_hardware(start.get('ranks'), start.get('device'))}"))
    if not config.get("starts"):
        facts.append(("hardware", _hardware(config["world_size"], config.get("device"))))
    versions = ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items())
    return [*facts, ("versions", versions), ("git commit", config.get("git_commit") or "unknown (no git checkout)")]


def _hardware(ranks: Any, device: Any) -> str:
    return f"{ranks} rank{'' if ranks == 1 else 's'} on {device or 'an unknown device'}"


def _model(settings: dict[str, Any], cost: dict[str, Any]) -> str:
    weights = settings.get("checkpoint") or settings.get("init") or "random"
    size = f"{cost['parameters'] / 1e6:.2f} M parameters, {cost['gflops']:.3g} GFLOPs per image"
    args = settings.get("model_args")
    return f"{cost.get('model', '')}{f' {json.dumps(args)}' if args else ''}, {size}, initial weights: {weights}"


def _differences(run: dict[str, Any]) -> list[tuple[str, str, str]] | str:
    """Return the settings that differ between recipe and run: key, the recipe's value and the run's value.

    If the recipe cannot be read, return the error message instead.
    """
    own = flattened(run)
    name = str(run.get("recipe"))
    try:
        recipe = build_run(
            name, debug=bool(run.get("debug")) and name in RECIPES
        )  # --debug applies only to named recipes
    except (OSError, ValueError) as error:
        return str(error)
    # Convert to the types of config.json, such as lists for tuples.
    theirs = flattened(json.loads(json.dumps(as_dict(recipe))))
    keys = [key for key in own if key not in OF_THE_FOLDER and own[key] != theirs.get(key)]
    return [(key, _value(theirs.get(key)), _value(own[key])) for key in sorted(keys)]


def _value(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)
