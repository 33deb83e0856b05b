"""What a run is and how far it is: progress, models, settings that differ from the recipe's, versions."""

import json
import shlex
import time
from collections.abc import Sequence
from typing import Any

from vitkd_ds.checkpoint.folder import flattened
from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report.html import Html, element, joined, section, table
from vitkd_ds.config.metrics import PREFIX, VAL_METRICS
from vitkd_ds.config.run import as_dict
from vitkd_ds.config.run_folder import METRICS
from vitkd_ds.recipes import RECIPES, build_run

OF_THE_FOLDER = {"recipe", "workdir", "resume", "extend", "debug"}
"""Settings that are no difference to a recipe."""


def head(result: Result, others: Sequence[Result], sections: dict[str, str]) -> Html:
    """The name of the first run, how far it is, and links to the sections, given as {id: title}."""
    total = result.config["plan"].get("total_steps")
    step = max((line["step"] for line in result.lines), default=0)
    of_total = f"{step:,} of {total:,} steps" if isinstance(total, int) else f"{step:,} steps"
    if result.summary is not None:
        state = element("p", f"Finished: {of_total}.", class_="soft")
    else:
        bar = element("progress", value=step, max=total or max(1, step))
        state = element("div", bar, element("p", f"Not finished: {of_total}{_age(result)}.", class_="soft"), id="state")
    compared = f", against {', '.join(other.name for other in others)}" if others else ""
    written = element("p", f"As of {time.strftime('%Y-%m-%d %H:%M')}{compared}.", class_="soft")
    links = element("nav", *(element("a", title, href=f"#{name}") for name, title in sections.items()))
    return element("header", element("h1", result.name), state, written, links)


def _age(result: Result) -> str:
    """When an unfinished run last wrote to its log."""
    try:
        seconds = max(0.0, time.time() - (result.folder / METRICS).stat().st_mtime)
    except OSError:
        return ""
    text = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    return f"; its log was written {text if seconds < 7200 else f'{seconds / 3600:.0f} hours'} before this page"


def tiles(result: Result) -> Html:
    """The numbers that are asked for first."""
    found, tile = result.evaluation, []
    if found:
        low, high = result.top1_interval
        about = f"student top-1 on {result.num_images:,} images, 95 % interval [{low:.2f}, {high:.2f}], "
        tile.append((f"{result.top1:.2f} %", f"{about}step {found['step']:,}"))
    for name, metric in VAL_METRICS.items():
        lines = [line for line in result.lines if isinstance(line.get(PREFIX + name), int | float)]
        # What is not of the same evaluation as the student's top-1 says when it is of.
        last = found if metric.summarized_for == "classes" else [{}, *lines][-1]
        if metric.tile and isinstance(last.get(PREFIX + name), int | float):
            about = "" if last is found else f", step {last['step']:,}"
            number = f"{last[PREFIX + name]:.{metric.digits}f} {metric.unit}".rstrip()
            tile.append((number, metric.tile + about))
    if parameters := result.size("student", "parameters"):
        teacher = result.size("teacher", "parameters")
        part = f", the teacher has {teacher / parameters:.1f} times as many" if teacher else ""
        tile.append((f"{parameters / 1e6:.2f} M", f"parameters of the student{part}"))
    if result.images_per_s:
        tile.append((f"{result.images_per_s:,.0f}", "images/s in training, all ranks"))
    return element("div", *(element("div", element("b", b), element("span", s), class_="tile") for b, s in tile),
                   class_="tiles")  # fmt: skip


def what_was_run(result: Result) -> Html:
    """Models, data, hardware, versions, and the settings in which the run differs from its recipe."""
    config = result.config
    run, models = config["run"], config.get("models") or {}
    facts = [("recipe", run.get("recipe", ""))]
    facts += [(role, _model(run[role], models[role])) for role in ("student", "teacher") if models.get(role)]
    if models.get("teacher"):
        stated = models["teacher"].get("license") or "not stated in timm's settings of these weights"
        facts += [("licence of the teacher", stated)]
    if not run.get("teacher"):
        facts += [("teacher", "none: plain training")]
    facts += [("data", f"{run['data']['train']} and {run['data']['val']}, {run['data']['num_classes']} classes")]
    for number, start in enumerate(start for start in config.get("starts") or [] if isinstance(start, dict)):
        about = "went on" if number or start.get("step") else "start"
        where = f"step {start.get('step')}, {start.get('time')}"
        facts += [(about, f"{where}, {_hardware(start.get('ranks'), start.get('device'))}")]
    if not config.get("starts"):
        facts += [("hardware", _hardware(config["world_size"], config.get("device")))]
    versions = ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items())
    facts += [("versions", versions), ("git commit", config.get("git_commit") or "not of a checkout")]
    words = [element("span", shlex.quote(str(word))) for word in config.get("command") or []]
    command = element("code", *(part for word in words for part in (word, " ")), class_="command")
    facts += [("command", command), ("folder", result.folder)]
    listed = element("dl", *(joined((element("dt", key), element("dd", value))) for key, value in facts))
    return section("run", "What was run", listed, *_differences(run))


def _hardware(ranks: Any, device: Any) -> str:
    return f"{ranks} rank{'' if ranks == 1 else 's'} on {device or 'an unknown device'}"


def _model(settings: dict[str, Any], cost: dict[str, Any]) -> str:
    weights = settings.get("checkpoint") or settings.get("init") or "random"
    size = f"{cost['parameters'] / 1e6:.2f} M parameters, {cost['gflops']:.3g} GFLOPs an image"
    args = settings.get("model_args")
    return f"{cost.get('model', '')}{f' {json.dumps(args)}' if args else ''}, {size}, weights at the start: {weights}"


def _differences(run: dict[str, Any]) -> list[Html]:
    """A table of the settings that are not the recipe's, and all settings to unfold."""
    own = flattened(run)
    title = element("h3", "Differences to the recipe")
    everything = element("pre", element("code", json.dumps(run, indent=2)))
    unfold = element("details", element("summary", "All settings"), everything)
    name = str(run.get("recipe"))
    try:
        recipe = build_run(name, debug=bool(run.get("debug")) and name in RECIPES)  # a stored run has its own size
    except (OSError, ValueError) as error:
        return [title, element("p", f"The recipe cannot be read here: {error}", class_="note"), unfold]
    # As config.json holds them: tuples are lists there.
    theirs = flattened(json.loads(json.dumps(as_dict(recipe))))
    keys = [key for key in own if key not in OF_THE_FOLDER and own[key] != theirs.get(key)]
    if not keys:
        return [title, element("p", "None: every setting is the recipe's default."), unfold]
    rows = [(element("code", key), _value(theirs.get(key)), _value(own[key])) for key in sorted(keys)]
    return [title, table(("setting", "recipe", "this run"), rows, class_="settings"), unfold]


def _value(value: Any) -> Html:
    return element("td", value if isinstance(value, str) and value else json.dumps(value), class_="text")
