"""The whole page: unfinished and older runs, text that stays text, and errors."""

import json
import os
import re
import shutil

import pytest

from tests.commands.compare.conftest import change
from tests.commands.report.written import Page, answers, tables, written
from tests.conftest import metrics_of, run_command
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report import report
from vitkd_ds.commands.report.answers import read_answers
from vitkd_ds.commands.report.curves import charts_of
from vitkd_ds.commands.report.page import FOLDER


def test_only_the_chart_of_shares_has_a_colour_legend(runs):
    page = written(runs / "taught")
    figures = re.findall(r'<figure class="chart"[^>]* data-key="(\w+)">(.*?)</figure>', page, re.DOTALL)
    assert {key for key, _ in figures} > {"shares"}
    assert all(('class="swatch"' in content) == (key == "shares") for key, content in figures)


def test_every_link_leads_to_its_section_and_every_css_class_has_a_rule(runs):
    page = written(runs / "taught", runs / "plain")
    links = dict(re.findall(r'<a href="#([\w-]+)">([^<]+)</a>', page))
    sections = dict(re.findall(r'<section id="([\w-]+)"><h2>([^<]+)</h2>', page))
    assert links == sections | {"images": "Images"} and len(links) == 6
    assert sections["images"] == "Where student and teacher disagree"
    markup = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    used = {name for names in re.findall(r'\bclass="([^"]*)"', markup) for name in names.split()}
    rules = re.sub(r"\{[^}]*\}", "", (FOLDER / "page.css").read_text())
    assert used - {*re.findall(r"\.([a-z]\w*)", rules)} == set()
    legend = re.search(r'<div class="legend">(.*?)</div>', page)[1]
    assert legend == "<span>┆ restart</span><span>▲ checkpoint</span>(of taught)"
    assert {"key", "swatch", "tile", "sorts", "settings", "confusion"} <= used


def test_numbers_of_runs_and_seeds_match_compare(runs):
    shutil.copytree(runs / "plain", runs / "plain1")
    change(runs / "plain1", run__seed=1)
    lines = metrics_of(runs / "plain1")
    lines[-1]["val_top1"] = 25.0
    (runs / "plain1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = tables(runs / "taught", runs / "plain", runs / "plain1")
    words = [os.fspath(runs / name) for name in ("taught", "plain", "plain1")]
    table = run_command("vitkd-ds", "compare", *words, "--speed", "false").stdout.split("\n\n")[1].splitlines()[2:]
    compared = [re.split(" {2,}", line.strip())[:-2] for line in table]
    assert [row for row in found["runs-table"][1:]] == compared
    top1 = [line["val_top1"] for line in metrics_of(runs / "plain") if "val_top1" in line][-1]
    own = [line["val_top1"] for line in metrics_of(runs / "taught") if "val_top1" in line][-1]
    _, first, second = found["groups-table"]
    assert first[:3] == ["group 1: taught", "1", f"{own:.2f}"]
    assert second[:3] == ["group 2: plain, plain1", "2", f"{(top1 + 25) / 2:.2f}"]
    assert second[4] == f"{own - top1:+.2f}"  # over their common seed


def going(run):
    """Turn a run into one that is at step 10 and was evaluated at step 7."""
    for name in ("done", "summary.json", "student.safetensors", "student.json"):
        (run / name).unlink()
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 10]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 14, "val_num_im']))


def test_an_unfinished_run_has_a_report_of_its_data_so_far(runs):
    run = runs / "taught"
    going(run)
    os.utime(run / "metrics.jsonl", (0, 0))
    text = written(run, runs / "plain")
    assert '<progress value="10" max="14">' in text and "Not finished: 10 of 14 steps; last log entry" in text
    assert Page(text).tables["runs-table"][1][8] == "at step 7"
    assert "group 2" not in text
    assert (
        max(max(series["steps"]) for chart in charts_of(read_results([str(run)])) for series in chart["series"]) == 10
    )
    # Before the first evaluation there are only curves.
    lines = [line for line in metrics_of(runs / "plain") if "total" in line]
    (runs / "plain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    (runs / "plain" / "predictions.json").unlink()
    text = written(runs / "plain")
    assert "No evaluation of top-1 yet: plain." in text and "No predictions for single images yet" in text
    # And before the first line none of these.
    (runs / "plain" / "metrics.jsonl").unlink()
    assert 'class="chart"' not in written(runs / "plain")


def test_a_run_without_classes_and_one_of_an_older_version_have_a_report(runs):
    run = runs / "taught"
    (run / "predictions.json").unlink()
    lines = [{"step": 2, "total": 2.0}, {"step": 2, "val_num_images": 4.0, "val_cka": 0.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    change(run, run__data__num_classes=0)
    text = written(run)
    assert "trained without classes" in text and "<b>0.2500</b>" in text
    config = json.loads((run / "config.json").read_text())
    for key in ("starts", "models", "versions", "images", "command"):
        config.pop(key)
    (run / "config.json").write_text(json.dumps(config))
    assert "hardware" in written(run)


def test_text_never_becomes_markup(runs):
    hostile = """</script><script>1</script><img src=x onerror=1>&amp;'\""""
    run = (runs / "taught").rename(runs / "a <b> & c")
    found = answers(run) | {"classes": [f"{hostile}{label}" for label in range(10)]}
    (run / "predictions.json").write_text(json.dumps(found))
    change(run, command=[hostile], versions={hostile: hostile}, run__recipe=hostile, models__teacher__license=hostile)
    text = written(run, runs / "plain")
    page = Page(text)
    assert len(page.scripts) == 2 and "<img src=x" not in text and page.text.count("a <b> & c") > 4
    for words in (f"{hostile}3", f"{hostile} {hostile}"):
        assert words in page.text
    assert [one["name"] for one in json.loads(page.scripts[0])["runs"]] == ["a <b> & c", "plain"]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"step": 1}',
        '{"step": 1, "classes": ["a"], "image": [0], "label": [1], "student": [0], "student_probability": [0.5]}',
        '{"step": 1, "classes": ["a"], "image": [0, 1], "label": [0], "student": [0], "student_probability": [0.5]}',
        '{"step": 1, "classes": ["a"], "image": [], "label": [], "student": [], "student_probability": []}',
        '{"step": 1, "classes": ["a"], "image": [0], "label": ["x"], "student": [0], "student_probability": [0.5]}',
    ],
)
def test_damaged_answers_are_rejected_by_name(runs, content):
    (runs / "taught" / "predictions.json").write_text(content)
    with pytest.raises(ValueError, match="taught/predictions.json "):
        read_answers(runs / "taught")


def test_unwritable_or_unreadable_paths_are_rejected(runs):
    with pytest.raises(ValueError, match="--out must end in .html, got 'x.pdf'"):
        report(str(runs / "taught"), out="x.pdf")
    with pytest.raises(ValueError, match="the folder of --out, 'none', does not exist"):
        report(str(runs / "taught"), out="none/x.html")
    with pytest.raises(ValueError, match="is not a run folder: it has no"):
        report(str(runs / "nothing"))
    assert run_command("vitkd-ds", "report", runs / "taught").stdout == f"{runs / 'taught' / 'report.html'}\n"
    assert (runs / "taught" / "report.html").read_text().startswith("<!doctype html>")
