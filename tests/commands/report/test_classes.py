"""Student and teacher per class, against slow counts of the stored answers."""

import json
import re

import numpy as np
import pytest

from tests.commands.compare.conftest import change
from tests.commands.report.written import Page, answers, made, tables, written
from vitkd_ds.commands.report.answers import Answers
from vitkd_ds.commands.report.classes import per_class
from vitkd_ds.train.statistics import paired_interval, wilson_interval


def test_class_counts_match_a_slow_count(runs):
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
        "difference from plain, points",
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


def test_largest_class_gains_and_losses_are_relative_to_the_other_run(runs):
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
    assert "taught (step 14) gets 8 right that plain (step 14) gets wrong, and it gets 5 wrong that" in sentence
    assert f"+4.69 points, 95 % interval [{low:+.2f}, {high:+.2f}]" in sentence
    helped, hurt = re.search(r"Helped most(.*?)Hurt most(.*?)All classes", text, re.S).groups()
    names = own["classes"]
    bars = r"<span>([^<]+)</span><span><i class=\"(\w+)[^\"]*\" style=\"--part:([\d.]+)\"></i></span><span>([-+\d.]+) "
    assert re.findall(bars, helped) == [(names[0], "up", "100.0", "+75.0"), (names[1], "up", "33.3", "+25.0")]
    assert re.findall(bars, hurt) == [(names[3], "down", "83.3", "-62.5")]
    # In the other order the signs are turned.
    assert "-4.69 points" in written(runs / "plain", runs / "taught")


def test_the_eight_largest_class_gains_and_losses_are_named():
    label = np.repeat(np.arange(20), 20)
    place = np.tile(np.arange(20), 20)
    gained = label // 2 + 1  # each even class gains one image more than the previous even one; odd classes lose them
    wrong = (label + 1) % 20
    is_better = (label % 2 == 0) & (place < gained) & (label < 18)
    is_worse = (label % 2 == 1) & (place < gained) & (label < 18)

    def answered(is_wrong):
        student = np.where(is_wrong, wrong, label)
        return Answers(3, [f"c{k}" for k in range(20)], np.arange(400), label, student, np.ones(400), None, None)

    other = made(name="other")
    found = per_class(answered(is_worse), other, answered(is_better))
    assert [row["name"] for row in found["helped"]] == [f"c{k}" for k in range(16, 0, -2)]
    assert [row["name"] for row in found["hurt"]] == [f"c{k}" for k in range(17, 1, -2)]
    assert [row["points"] for row in found["helped"]] == [5 * count for count in range(9, 1, -1)]
    assert found["most_points_of_a_class"] == 45 and (found["other"], found["other_step"]) == (other, 3)
    assert (found["whole"]["gained"], found["whole"]["lost"], found["whole"]["points"]) == (45, 45, 0)
    assert found["class_heads"] == [
        "class",
        "images",
        "student top-1 %",
        "95 % interval",
        "difference from other, points",
        "95 % interval",
    ]
    alone = per_class(answered(is_worse), None, None)
    assert alone["whole"] is None and len(alone["class_heads"]) == 4 and "points" not in alone["classes"][0]


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
    # Of 40 classes, class k is confused with k + 1 more often the larger k is, and class 0 with all others equally.
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


def test_paired_intervals_follow_agresti_and_min():
    for n, gained, lost in ((64, 8, 5), (8, 0, 0), (50, 0, 9)):
        cells = [gained + 0.5, lost + 0.5, (n - gained - lost) / 2 + 0.5, (n - gained - lost) / 2 + 0.5]
        parts = np.array(cells) / sum(cells)
        effect = np.array([1, -1, 0, 0])  # each cell's contribution to the difference per image
        mean = parts @ effect
        half = 1.96 * np.sqrt((parts @ effect**2 - mean**2) / sum(cells))
        assert paired_interval(n, gained, lost) == pytest.approx((100 * (mean - half), 100 * (mean + half)))
