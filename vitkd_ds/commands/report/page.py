"""The page of a report: its sections, style and script in one file, which opens from the disk without a network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitkd_ds.commands.compare.runs import Result
from vitkd_ds.commands.report import facts
from vitkd_ds.commands.report.answers import Answers, are_comparable, read_answers
from vitkd_ds.commands.report.classes import confusion, per_class
from vitkd_ds.commands.report.curves import MOST_POINTS, charts_of, marks_of
from vitkd_ds.commands.report.examples import examples
from vitkd_ds.commands.report.html import Html, data, element, section
from vitkd_ds.commands.report.runs import runs_section

FOLDER = Path(__file__).parent
KINDS = {"restart": "┆ the run went on after a stop", "checkpoint": "▲ a checkpoint that is kept",
         "skipped": "❘ images were skipped"}  # fmt: skip
COLOURS = 8
"""Colours of page.css."""


def page(results: Sequence[Result]) -> Html:
    """The whole page about the first run, with the others beside it.

    Raises:
        ValueError: a damaged file in a run folder.
    """
    result, others = results[0], results[1:]
    answers = [read_answers(some.folder) for some in results]
    own = answers[0]
    other = _other(results, answers)
    charts, marks = charts_of(results), marks_of(result)
    sections = {"run": "What was run", "runs": "Runs", "curves": "Curves", "classes": "Classes"}
    parts = [facts.what_was_run(result), runs_section(results), _curves(results, charts, marks)]
    if own is None:
        parts.append(section("classes", "Classes", element("p", _no_answers(result), class_="soft")))
    else:
        sections |= {"confusion": "Confusion matrix", "images": "Images"}
        name, compared = (results[other].name, answers[other]) if other else ("", None)
        parts += [per_class(result.name, own, name, compared), confusion(own), examples(result, own)]
    body = element("main", facts.head(result, others, sections), facts.tiles(result), *parts)
    curves = {
        "runs": [{"name": some.name, "steps_per_epoch": some.config["plan"]["steps_per_epoch"]} for some in results],
        "charts": charts,
        "marks": marks,
    }
    script = element("script", Html((FOLDER / "page.js").read_text()))
    whole = element("html", _head(result), element("body", body, data("data", curves), script), lang="en")
    return Html(f"<!doctype html>\n{whole}\n")


def _head(result: Result) -> Html:
    return element(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        # Nothing is fetched, whatever a run's strings say.
        Html("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src "
             "'unsafe-inline'; script-src 'unsafe-inline'\">"),
        element("title", f"{result.name}: report"),
        element("style", Html((FOLDER / "page.css").read_text())),
    )  # fmt: skip


def _other(results: Sequence[Result], answers: Sequence[Answers | None]) -> int | None:
    """The run to compare the first with, class by class: the first of other settings that answered for the same images,
    or else of the same."""
    fitting = [number for number in range(1, len(results)) if answers[0] and answers[number]
               and are_comparable(answers[0], answers[number])
               and "data.val" not in results[0].other_images(results[number])]  # fmt: skip
    unlike = [number for number in fitting if results[number].settings != results[0].settings]
    return next(iter(unlike or fitting), None)


def _no_answers(result: Result) -> str:
    if not result.config["run"]["data"]["num_classes"]:
        return "The run was trained without classes: how it agrees with its teacher stands among the curves."
    return "No answers for single images yet: a run stores them at each evaluation, from version 0.8 on."


def _curves(results: Sequence[Result], charts: Sequence[dict[str, Any]], marks: Sequence[dict[str, Any]]) -> Html:
    """Boxes that choose the runs, the legend of the marks, and an empty chart for each value that the script fills."""
    boxes = [
        element("label", element("input", type="checkbox", data_run=number, checked=True),
                element("span", class_="swatch", style=f"--colour:var(--c{number % COLOURS})"), result.name)
        for number, result in enumerate(results)
    ]  # fmt: skip
    kinds = {mark["kind"] for mark in marks}
    legend = [element("span", text) for kind, text in KINDS.items() if kind in kinds]
    figures = [_figure(number, chart) for number, chart in enumerate(charts)]
    about = (
        f"Every point is a line of metrics.jsonl; of more than {MOST_POINTS:,} the highest and lowest are drawn. Over "
        "long curves, which are pale, lie the means of stretches."
    )
    return section(
        "curves", "Curves",
        element("noscript", element("p", "The curves need JavaScript, which is in this file.", class_="warn")),
        element("div", *boxes, class_="controls"),
        element("div", *legend, *([f"(of {results[0].name})"] if legend else []), class_="legend"),
        element("div", *figures, class_="charts"),
        element("p", about, class_="note"),
    )  # fmt: skip


def _figure(number: int, chart: dict[str, Any]) -> Html:
    unit = [element("small", f" {chart['unit']}")] if chart["unit"] else []
    key = []
    if chart["key"] == "shares":
        styles = [f"--colour:var(--c{(i + 2) % COLOURS})" for i in range(len(chart["series"]))]  # as page.js has them
        key = [element("span", element("span", class_="swatch", style=style), series["name"])
               for style, series in zip(styles, chart["series"])]  # fmt: skip
        key = [element("div", *key, class_="key")]
    note = [element("figcaption", chart["note"])] if chart["note"] else []
    picture = element("svg", role="img", aria_label=chart["title"])
    tip, about = element("div", class_="tip", hidden=True), {"data_chart": number, "data_key": chart["key"]}
    return element("figure", element("h3", chart["title"], *unit), picture, *key, *note, tip, class_="chart", **about)
