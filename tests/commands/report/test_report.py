"""What a report says, against slow counts of the run's files; runs that go on, older ones, and what is refused."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.commands.compare.conftest import change
from tests.conftest import metrics_of, run_command
from vitkd_ds.commands.compare.runs import read_results
from vitkd_ds.commands.report import examples, report
from vitkd_ds.commands.report.answers import Answers, read_answers
from vitkd_ds.commands.report.curves import charts_of
from vitkd_ds.train.statistics import paired_interval, wilson_interval


class Page(HTMLParser):
    """Tables of a page, as id, else class -> rows of cells; all its text, and the content of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.rows, self.cell = {}, None, False
        self.text, self.scripts = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self.rows = self.tables.setdefault(found.get("id") or found.get("class") or "none", [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.cell = True
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, text):
        self.text += text
        if self.cell:
            self.rows[-1][-1] += text
        if self.scripts:
            self.scripts[-1] += text


def written(*runs, **options):
    return report(*map(str, runs), **options).read_text()


def tables(*runs):
    return Page(written(*runs)).tables


def answers(run):
    return json.loads((run / "predictions.json").read_text())


def test_classes_are_counted_as_a_slow_count_does(runs):
    own, other = answers(runs / "taught"), answers(runs / "plain")
    own["teacher"] = [(answer + place % 2) % 10 for place, answer in enumerate(own["teacher"])]  # not always right
    (runs / "taught" / "predictions.json").write_text(json.dumps(own))
    head, *rows = tables(runs / "taught", runs / "plain")["classes-table"]
    assert head == [
        "class",
        "images",
        "student top-1 %",
        "95 % interval",
        "teacher top-1 %",
        "agreement %",
        "difference to plain, points",
        "95 % interval",
    ]
    assert [row[0] for row in rows] == own["classes"]
    for label, row in enumerate(rows):
        places = [i for i, found in enumerate(own["label"]) if found == label]
        right = [own["student"][i] == label for i in places]
        by_other = [other["student"][i] == label for i in places]
        taught = [own["teacher"][i] == label for i in places]
        same = [own["teacher"][i] == own["student"][i] for i in places]
        low, high = wilson_interval(len(places), sum(right))
        assert row[1:4] == [str(len(places)), f"{100 * np.mean(right):.2f}", f"[{low:.1f}, {high:.1f}]"]
        assert row[4:6] == [f"{100 * np.mean(taught):.2f}", f"{100 * np.mean(same):.2f}"]
        points = 100 * (np.mean(right) - np.mean(by_other))
        assert row[6] == (f"{points:+.2f}" if points else "0.00")
        gained = sum(mine and not theirs for mine, theirs in zip(right, by_other))
        lost = sum(theirs and not mine for mine, theirs in zip(right, by_other))
        low, high = paired_interval(len(places), gained, lost)
        assert row[7] == f"[{low:+.1f}, {high:+.1f}]"


def test_the_classes_that_gained_and_lost_most_are_those_against_the_other_run(runs):
    own, other = answers(runs / "taught"), answers(runs / "plain")
    own["label"] = other["label"] = [i // 8 for i in range(64)]  # 8 images of each of 8 classes
    other["student"] = list(own["label"])
    own["student"] = list(own["label"])
    other["student"][0:6] = [9] * 6  # class 0 gains 6, class 1 gains 2
    other["student"][8:10] = [9] * 2
    own["student"][24:29] = [9] * 5  # class 3 loses 5
    for run, found in (("taught", own), ("plain", other)):
        (runs / run / "predictions.json").write_text(json.dumps(found))
    text = written(runs / "taught", runs / "plain")
    sentence = re.search(r'<p id="difference">(.*?)</p>', text).group(1)
    low, high = paired_interval(64, 8, 5)
    assert "taught (step 14) answers 8 right that plain (step 14) answers wrong, and 5 the other way round" in sentence
    assert f"+4.69 points, 95 % interval [{low:+.2f}, {high:+.2f}]" in sentence
    helped, hurt = re.search(r"Helped most(.*?)Hurt most(.*?)All classes", text, re.S).groups()
    names = own["classes"]
    bars = r"<span>([^<]+)</span><span><i class=\"(\w+)[^\"]*\" style=\"--part:([\d.]+)\"></i></span><span>([-+\d.]+) "
    assert re.findall(bars, helped) == [(names[0], "up", "100.0", "+75.0"), (names[1], "up", "33.3", "+25.0")]
    assert re.findall(bars, hurt) == [(names[3], "down", "83.3", "-62.5")]
    # In the other order the signs are turned.
    assert "-4.69 points" in written(runs / "plain", runs / "taught")


def test_the_speed_of_the_first_run_is_shown_where_it_is_known(runs):
    pace = re.search(
        r'<div class="tile"><b>([\d,]+)</b><span>images/s in training, all ranks', written(runs / "taught")
    )
    summary = json.loads((runs / "taught" / "summary.json").read_text())
    assert pace and int(pace[1].replace(",", "")) == round(summary["images_per_s"])


def test_large_photographs_are_jpegs_of_quality_85_and_small_images_are_png():
    photo = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    kinds = {}
    for pixels in (photo, photo[:28, :28]):
        head, _, text = examples._uri(pixels).partition(";base64,")
        kinds[head] = Image.open(io.BytesIO(base64.b64decode(text)))
    expected = io.BytesIO()
    Image.fromarray(photo).save(expected, "JPEG", quality=85)
    assert kinds["data:image/jpeg"].quantization == Image.open(expected).quantization
    np.testing.assert_array_equal(np.array(kinds["data:image/png"]), photo[:28, :28])


def test_the_key_of_colours_belongs_to_the_chart_of_shares_alone(runs):
    page = written(runs / "taught")
    figures = re.findall(r'<figure class="chart"[^>]* data-key="(\w+)">(.*?)</figure>', page, re.DOTALL)
    assert {key for key, _ in figures} > {"shares"}
    assert all(('class="swatch"' in content) == (key == "shares") for key, content in figures)


def test_runs_on_other_images_are_not_compared_class_by_class(runs):
    change(runs / "plain", images={"train": 1, "val": 2})
    text = written(runs / "taught", runs / "plain")
    assert "Helped most" not in text and Page(text).tables["groups-table"][2][4] == "-"
    assert len(Page(text).tables["classes-table"][0]) == 6


def test_the_confusion_matrix_counts_answers_and_is_cut_to_the_worst_classes(runs):
    found = answers(runs / "taught")
    head, *rows = tables(runs / "taught")["confusion"]
    assert head[1:] == [row[0] for row in rows] == found["classes"]
    for label, row in enumerate(rows):
        for answer, cell in enumerate(row[1:]):
            pairs = zip(found["label"], found["student"])
            assert int(cell or 0) == sum(pair == (label, answer) for pair in pairs)
    # Of 40 classes k is taken for k + 1 the more often the larger k is, and 0 for all others alike.
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(40), 100)
    student = np.where(np.tile(np.arange(100), 40) < label, np.minimum(label + 1, 39), label)
    student[:100] = random.permutation(np.arange(100) % 40)
    many = Answers(1, [f"c{k}" for k in range(40)], np.arange(4000), label, student, np.ones(4000), None, None)
    shown, counts = many.confusion()
    assert shown == list(range(15, 40)) and counts.shape == (25, 26) and counts.sum() == 2500
    for row, column in ((0, 0), (0, 1), (3, 4), (24, 24)):
        assert counts[row, column] == sum((label == shown[row]) & (student == shown[column]))
    assert counts[0, 1] == 15 and counts[3, 25] == 0
    shown, counts = Answers(
        *(many.step, many.classes, many.image, label, label[::-1].copy()), np.ones(4000), None, None
    ).confusion()
    assert (counts[:, 25] == 100 * np.isin(39 - np.array(shown), shown, invert=True)).all()


def test_runs_and_seeds_have_the_numbers_of_compare(runs):
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
    assert second[4] == f"{own - top1:+.2f}"  # over the seed that both have


def test_differences_to_the_recipe_versions_and_starts_are_said(runs):
    text = written(runs / "plain")
    settings = {row[0]: row[1:] for row in Page(text).tables["settings"][1:]}
    assert settings["optim.lr"] == ["0.0015", "0.002"] and settings["max_steps"] == ["4", "14"]
    assert settings["data.train"][0] == "demo" and "workdir" not in settings and "optim.betas" not in settings
    config = json.loads((runs / "plain" / "config.json").read_text())
    for words in (f"torch {config['versions']['torch']}", config["git_commit"], "none: plain training"):
        assert words in text
    starts = [(start["step"], start["ranks"], start["device"]) for start in config["starts"]]
    assert starts == [(0, 1, "cpu")]
    text = written(runs / "taught")
    assert re.search(r"<dt>went on</dt><dd>step 7, 20[-\d]+ [:\d]+, 1 rank on cpu</dd>", text)
    assert "not stated in timm" in text
    change(runs / "taught", models__teacher__license="cc-by-nc-4.0", run__recipe="gone/config.json")
    text = written(runs / "taught")
    assert "<dd>cc-by-nc-4.0</dd>" in text and "The recipe cannot be read here: no run at gone/config.json" in text


def going(run):
    """Make a run one that is at step 10 and was evaluated at step 7."""
    for name in ("done", "summary.json", "student.safetensors", "student.json"):
        (run / name).unlink()
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 10]
    (run / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 14, "val_num_im']))


def test_a_run_that_goes_on_has_a_report_of_what_is_there(runs):
    run = runs / "taught"
    going(run)
    os.utime(run / "metrics.jsonl", (0, 0))
    text = written(run, runs / "plain")
    assert '<progress value="10" max="14">' in text and "Not finished: 10 of 14 steps; its log was written" in text
    assert Page(text).tables["runs-table"][1][8] == "at step 7"
    assert "group 2" not in text
    assert (
        max(max(series["steps"]) for chart in charts_of(read_results([str(run)])) for series in chart["series"]) == 10
    )
    # Before the first evaluation there are curves alone.
    lines = [line for line in metrics_of(runs / "plain") if "total" in line]
    (runs / "plain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:3]))
    (runs / "plain" / "predictions.json").unlink()
    text = written(runs / "plain")
    assert "Without an evaluation of top-1: plain." in text and "No answers for single images yet" in text
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


def test_images_that_are_gone_or_others_are_a_sentence(runs):
    change(runs / "taught", images={"train": 1, "val": 2})
    assert "found other images in demo: put them back" in written(runs / "taught")
    change(runs / "taught", run__data__val=str(runs / "gone.beton"))
    text = written(runs / "taught")
    assert "The images cannot be shown: " in text and "gone.beton" in text and "<img" not in text


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
def test_damaged_answers_are_refused_by_name(runs, content):
    (runs / "taught" / "predictions.json").write_text(content)
    with pytest.raises(ValueError, match="taught/predictions.json must "):
        read_answers(runs / "taught")


def test_what_cannot_be_written_or_read_is_refused(runs):
    with pytest.raises(ValueError, match="--out must end in .html, found 'x.pdf'"):
        report(str(runs / "taught"), out="x.pdf")
    with pytest.raises(ValueError, match="--out must lie in a folder that exists, found none at 'none'"):
        report(str(runs / "taught"), out="none/x.html")
    with pytest.raises(ValueError, match="must be a run folder, found no"):
        report(str(runs / "nothing"))
    assert run_command("vitkd-ds", "report", runs / "taught").stdout == f"{runs / 'taught' / 'report.html'}\n"
    assert (runs / "taught" / "report.html").read_text().startswith("<!doctype html>")


def test_paired_intervals_are_agresti_and_mins():
    for n, gained, lost in ((64, 8, 5), (8, 0, 0), (50, 0, 9)):
        cells = [gained + 0.5, lost + 0.5, (n - gained - lost) / 2 + 0.5, (n - gained - lost) / 2 + 0.5]
        parts = np.array(cells) / sum(cells)
        effect = np.array([1, -1, 0, 0])  # what an image of each cell adds to the difference
        mean = parts @ effect
        half = 1.96 * np.sqrt((parts @ effect**2 - mean**2) / sum(cells))
        assert paired_interval(n, gained, lost) == pytest.approx((100 * (mean - half), 100 * (mean + half)))
