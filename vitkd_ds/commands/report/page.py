"""Render a report: collect the values for page.html, and embed page.css and page.js in the same file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup  # Jinja2's own requirement

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report.answers import Answers, are_comparable, read_answers
from vitkd_ds.commands.report.classes import per_class
from vitkd_ds.commands.report.curves import MOST_POINTS, charts_of, marks_of
from vitkd_ds.commands.report.examples import examples
from vitkd_ds.commands.report.facts import what_was_run
from vitkd_ds.commands.report.runs import table_of_runs
from vitkd_ds.commands.report.worth import worth

FOLDER = Path(__file__).parent
KINDS = {
    "restart": "┆ restart",
    "checkpoint": "▲ checkpoint",
    "skipped": "❘ skipped images",
}
NUM_COLOURS = 8
"""Number of colours in page.css."""
SHADES = ("{}", "color-mix(in oklab, {} 58%, var(--text))", "color-mix(in oklab, {} 58%, var(--card))")
"""CSS colours of the first, second and third run of a group, derived from the group's colour."""


def page(results: Sequence[Result]) -> str:
    """Return the HTML page that compares the first run with the other runs.

    Raises:
        ValueError: a file in a run folder is damaged.
    """
    result = results[0]
    others = list(results[1:])
    answers = [read_answers(some.folder) for some in results]
    own = answers[0]
    compared = _other(results, answers)
    marks = marks_of(result)
    kinds = {mark["kind"] for mark in marks}
    charts = charts_of(results)
    runs = [
        {"name": some.name, "steps_per_epoch": some.config["plan"]["steps_per_epoch"]} | look
        for some, look in zip(results, looks_of(results))
    ]
    # The keys are the names of variables in page.html.
    content = what_was_run(result) | {"result": result, "others": others, "own": own, "charts": charts}
    if result.config["run"]["data"]["num_classes"]:
        content["tiles"] = [worth(results, answers), *content["tiles"]]
    if own is not None:
        content |= per_class(own, results[compared] if compared else None, answers[compared] if compared else None)
        content["images"] = examples(result, own)
    return _template().render(
        content,
        runs=table_of_runs(results),
        looks=runs,
        legend=[text for kind, text in KINDS.items() if kind in kinds],
        curves={"runs": runs, "charts": charts, "marks": marks},
        num_colours=NUM_COLOURS,
        most_points=MOST_POINTS,
        style=Markup((FOLDER / "page.css").read_text()),
        script=Markup((FOLDER / "page.js").read_text()),
    )


def looks_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the colour and line style of each run. Runs that differ only in their seed get shades of one colour."""
    groups: list[list[Result]] = []
    looks = []
    for result in results:
        places = [i for i, (one, *_) in enumerate(groups) if _differs_in_seed(one, result)]
        place = places[0] if places else len(groups)
        groups += [] if places else [[]]
        number = len(groups[place])
        groups[place].append(result)
        colour = SHADES[number % len(SHADES)].format(f"var(--c{place % NUM_COLOURS})")
        looks.append({"colour": colour, "is_dotted": place >= NUM_COLOURS or number >= len(SHADES)})
    return looks


def _differs_in_seed(one: Result, other: Result) -> bool:
    return one.settings == other.settings and not one.other_images(other)


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template("page.html")


def _other(results: Sequence[Result], answers: Sequence[Answers | None]) -> int | None:
    """Return the index of the run to compare with the first run by class; None if no run is suitable.

    A suitable run has predictions for the same images. The first suitable run with other settings is chosen. If there
    is none, the first suitable run is chosen, which differs only in its seed.
    """
    fitting = [
        number
        for number in range(1, len(results))
        if answers[0]
        and answers[number]
        and are_comparable(answers[0], answers[number])
        and "data.val" not in results[0].other_images(results[number])
    ]
    unlike = [number for number in fitting if results[number].settings != results[0].settings]
    return next(iter(unlike or fitting), None)
