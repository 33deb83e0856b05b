"""The report in a real browser: its numbers match the run's files, it reacts to the pointer, and it fits a phone."""

import io
import json
import re
import shlex
import shutil

import pytest
from PIL import Image

from tests.commands.report.conftest import STEPS, STOPPED
from tests.conftest import metrics_of
from vitkd_ds.commands.report import report

pytestmark = pytest.mark.slow


def logged(run, key):
    """Step -> value."""
    return {line["step"]: line[key] for line in metrics_of(run) if key in line}


def shown(text):
    """Step and {name: value} of the tooltip at the pointer."""
    head, *lines = text.splitlines()
    values = dict(zip(lines[::2], map(float, lines[1::2])))
    return int(re.match(r"step (\d+), epoch", head).group(1)), values


def test_pointing_at_a_curve_shows_the_numbers_of_metrics_jsonl(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")))
    for key in ("total", "ce", "lr", "grad_norm", "memory_gib"):
        taught, plain = logged(runs / "taught", key), logged(runs / "plain", key)
        for step in (1, 5, STEPS):
            assert shown(page.hover(key, step / STEPS)) == (step, {"taught": taught[step], "plain": plain[step]}), key
    own, teacher = (logged(runs / "taught", key) for key in ("val_top1", "val_teacher_top1"))
    plain = logged(runs / "plain", "val_top1")
    for step in (STOPPED, STEPS):
        expected = {"taught": own[step], "plain": plain[step], "taught (teacher)": teacher[step]}
        assert shown(page.hover("val_top1", step / STEPS)) == (step, expected)
    # A term that only one run has, and a value with a gap: the first step after a start is not timed.
    assert shown(page.hover("nkd", 4 / STEPS)) == (4, {"taught": logged(runs / "taught", "nkd")[4]})
    speed = logged(runs / "taught", "images_per_s")
    missing = [step for step in range(1, STEPS + 1) if step not in speed]
    assert missing and all(step in (1, STOPPED + 1) for step in missing)
    assert shown(page.hover("images_per_s", 10 / STEPS))[1]["taught"] == speed[10]


def test_shares_of_the_total_are_of_weighted_terms_and_sum_to_100_percent(runs, opened):
    page = opened(report(str(runs / "taught")))
    line = next(line for line in metrics_of(runs / "taught") if line["step"] == 9 and "total" in line)
    step, parts = shown(page.hover("shares", 9 / STEPS))
    terms = {key: line[key] for key in ("ce", "nkd", "vitkd_mimic", "vitkd_generate")}  # all weights are 1
    assert step == 9 and parts == pytest.approx({key: 100 * value / line["total"] for key, value in terms.items()})
    assert sum(parts.values()) == pytest.approx(100, rel=1e-5)


def test_a_long_noisy_curve_is_pale_behind_its_means(runs, opened):
    lines = [{"step": step, "total": 1.0 + step % 2} for step in range(1, 401)]
    (runs / "plain" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = opened(report(str(runs / "plain")))
    pale, clear = page.all('.chart[data-key="total"] path.curve')
    assert "pale" in pale.get_attribute("class") and "pale" not in clear.get_attribute("class")
    assert pale.size["height"] > 50 and clear.size["height"] == 0  # the mean is 1.5 everywhere
    step, values = shown(page.hover("total", 101 / 400))
    assert abs(step - 101) < 3 and values == {"plain": 1.0 + step % 2}


def test_boxes_choose_the_runs_whose_curves_are_drawn(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")))
    curves = '.chart[data-key="total"] path.curve'
    assert len(page.all(curves)) == 2 and len(page.all(".chart line.restart")) == len(page.all(".chart"))
    page.one('input[data-run="0"]').click()
    assert len(page.all(curves)) == 1 and not page.all(".chart .restart, .chart .checkpoint")
    assert shown(page.hover("total", 5 / STEPS)) == (5, {"plain": logged(runs / "plain", "total")[5]})
    page.one('input[data-run="1"]').click()
    assert not page.all(curves)
    page.one('input[data-run="0"]').click()
    assert shown(page.hover("total", 5 / STEPS)) == (5, {"taught": logged(runs / "taught", "total")[5]})
    stops = page.run(
        "[...document.querySelectorAll('.chart[data-key=total] .restart title')].map((t) => t.textContent)"
    )
    assert len(stops) == 1 and stops[0].startswith(f"resumed at step {STOPPED} 20")
    kept = page.run(
        "[...document.querySelectorAll('.chart[data-key=total] .checkpoint title')].map((t) => t.textContent)"
    )
    folder = runs / "taught" / "checkpoints"
    best = (folder / "best").read_text().strip()
    tags = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert kept == [f"checkpoint {tag}{', best' if tag == best else ''}" for tag in tags]


def test_classes_are_filtered_and_sorted(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")))
    rows = page.rows("classes-table")
    assert len(rows) == 10
    field = page.one("input[data-filter]")
    field.send_keys("SHIRT")
    assert [row[0] for row in page.rows("classes-table")] == ["0_t_shirt_top", "6_shirt"]
    field.clear()
    field.send_keys(" ")
    assert page.rows("classes-table") == rows
    heads = page.all("#classes-table th")
    for column, head in enumerate(heads[:3]):
        head.click()
        values = [row[column] if column == 0 else float(row[column]) for row in page.rows("classes-table")]
        # Names start in ascending order, so a click reverses them; numbers start with the largest.
        assert values == sorted(values, reverse=column > 0)
        head.click()
        values = [row[column] if column == 0 else float(row[column]) for row in page.rows("classes-table")]
        assert values == sorted(values, reverse=column == 0)


def test_images_are_filtered_by_which_model_is_right(runs, opened):
    page = opened(report(str(runs / "taught")))
    found = json.loads((runs / "taught" / "predictions.json").read_text())
    answers = list(zip(found["label"], found["student"], found["teacher"]))
    outcomes = {
        "teacher": sum(teacher == label != student for label, student, teacher in answers),
        "student": sum(student == label != teacher for label, student, teacher in answers),
        "neither": sum(label != student != teacher != label for label, student, teacher in answers),
    }
    text = page.one("#images p").text
    assert text.startswith(f"For {sum(outcomes.values())} of {len(answers)} images the two models predict different")
    assert [int(number) for number in re.findall(r"right: (\d+)", text)] == list(outcomes.values())
    assert len(page.all(".images figure")) == min(16, sum(outcomes.values()))
    for outcome in outcomes:
        page.one(f'input[data-outcome="{outcome}"]').click()
        visible = [figure for figure in page.all(".images figure") if figure.is_displayed()]
        of_it = page.all(f'.images figure[data-outcome="{outcome}"]')
        assert visible == of_it
    assert page.run("[...document.images].every((image) => image.complete && image.naturalWidth === 28)")


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (400, "light"), (400, "dark")])
def test_a_page_fits_its_window_and_is_painted(runs, opened, width, scheme):
    page = opened(report(str(runs / "taught"), str(runs / "plain")), width=width, scheme=scheme)
    assert page.run("document.documentElement.scrollWidth") == width
    # Every chart's curve is inside its frame at any width.
    boxes = """[...document.querySelectorAll(".chart")].map((figure) => {
        const frame = figure.querySelector("svg").getBoundingClientRect();
        return [...figure.querySelectorAll("path.curve")].every((curve) => {
            const box = curve.getBoundingClientRect();
            const isBetween = box.left >= frame.left && box.right <= frame.right + 1;
            return isBetween && box.top >= frame.top && box.bottom <= frame.bottom;
        });
    })"""
    inside = page.run(boxes)
    assert len(inside) > 10 and all(inside)
    picture = Image.open(io.BytesIO(page.picture())).convert("RGB")
    assert picture.width == width and picture.height > 3000
    ground = picture.getpixel((2, 2))
    assert (sum(ground) > 700) if scheme == "light" else (sum(ground) < 100)
    colours = {colour for _, colour in picture.getcolors(1 << 24)}
    style = page.run("getComputedStyle(document.documentElement).getPropertyValue('--c0')")
    assert tuple(bytes.fromhex(style.strip().removeprefix("#"))) in colours, "the first run's curves"


def test_nothing_is_fetched_and_a_runs_strings_stay_text(runs, opened):
    hostile = '</script><script>document.title="owned"</script><img src=x onerror=document.title="owned">&amp;'
    folder = runs / 'a <img src=x onerror=document.title="owned"> & b'
    shutil.move(runs / "taught", folder)
    found = json.loads((folder / "predictions.json").read_text())
    found["classes"] = [f"{hostile}{k}" for k in range(10)]
    (folder / "predictions.json").write_text(json.dumps(found))
    config = json.loads((folder / "config.json").read_text())
    config["command"], config["versions"] = [hostile], {hostile: hostile}
    config["starts"][1]["time"], config["models"]["teacher"]["license"] = hostile, hostile
    config["run"]["student"]["model"] = config["models"]["student"]["model"] = hostile
    (folder / "config.json").write_text(json.dumps(config))
    lines = [json.dumps(line | ({"x<b>": 1.5} if "total" in line else {})) for line in metrics_of(folder)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    page = opened(report(str(folder), str(runs / "plain"), out=str(runs / "x.html")))
    assert page.browser.title == f"{folder.name}: report" and page.one("h1").text == folder.name
    assert page.rows("classes-table")[3][0] == f"{hostile}3"
    assert page.run("document.querySelectorAll('.confusion td')[0].textContent") == f"{hostile}0"
    assert page.one(".command").text == shlex.quote(hostile)
    assert page.one("#run dl").text.count(hostile) > 4 and page.one('.chart[data-key="x<b>"] h3').text.startswith(
        "Loss term x<b>"
    )
    assert shown(page.hover("x<b>", 0.5))[1] == {folder.name: 1.5}
    assert page.run("performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length") == 0
    assert not page.all("main img:not(.small)") and len(page.all("script")) == 2
