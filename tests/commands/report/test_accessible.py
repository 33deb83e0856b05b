"""Accessibility of the report: keyboard, tables, phone, paper, and axe-core's findings."""

import pytest
from selenium.webdriver.common.keys import Keys

from tests.commands.report.conftest import AXE, STEPS, STOPPED
from tests.commands.report.test_browser import logged
from vitkd_ds.commands.report import report

pytestmark = pytest.mark.slow


def test_headings_sort_by_keyboard_and_announce_the_order(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")))

    def columns():
        return [row[0] for row in page.rows("runs-table")], [
            head.get_attribute("aria-sort") for head in page.all("#runs-table th")[:2]
        ]

    page.run("document.querySelector('#runs-table th button').focus()")
    focused = page.browser.switch_to.active_element
    focused.send_keys(Keys.ENTER)
    assert columns() == (["plain", "taught"], ["ascending", None])
    focused.send_keys(Keys.SPACE)
    assert columns() == (["taught", "plain"], ["descending", None])
    focused.send_keys(Keys.TAB)
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert columns()[1] == [None, "descending"]


def test_the_values_of_a_curve_are_also_a_table_for_readers_without_a_pointer(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")))
    page.one('.chart[data-key="val_top1"] summary').send_keys(Keys.ENTER)
    rows = '.chart[data-key="val_top1"] details tr'
    page.until(lambda: page.all(rows), "the table")
    head, *found = [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in page.all(rows)]
    assert head == ["step", "taught", "plain", "taught (teacher)"]
    columns = [logged(runs / name, key) for name, key in (("taught", "val_top1"), ("plain", "val_top1"))]
    columns.append(logged(runs / "taught", "val_teacher_top1"))
    assert [[float(cell) for cell in row] for row in found] == [
        [step, *(column[step] for column in columns)] for step in (STOPPED, STEPS)
    ]
    page.one('.chart[data-key="nkd"] summary').send_keys(Keys.ENTER)
    page.until(lambda: len(page.all('.chart[data-key="nkd"] details td')) == 2 * STEPS, "a row of each step")


def test_a_cropped_table_says_so_and_scrolls_by_keyboard(runs, opened):
    path = report(str(runs / "taught"), str(runs / "plain"))
    hint = "getComputedStyle(document.querySelector('[aria-label=Runs]'), '::before').content"
    page = opened(path)
    assert page.run(hint) == "none" and not page.all("[aria-label=Runs][tabindex]")
    page = opened(path, width=390)
    assert "more columns" in page.run(hint)
    place = page.one("[aria-label=Runs]")
    place.send_keys(Keys.ARROW_RIGHT * 3)
    page.until(lambda: page.run("arguments[0].scrollLeft", place) > 0, "the table has moved")


def test_the_printed_page_has_every_column_the_colours_and_the_run_names(runs, opened):
    page = opened(report(str(runs / "taught"), str(runs / "plain")), width=718)  # A4 with a browser's margins
    page.one('input[data-run="1"]').click()
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    cut = """[...document.querySelectorAll(".scroll")].filter((place) => place.querySelector("table") &&
        (getComputedStyle(place).overflow !== "visible" || place.scrollWidth > place.clientWidth))"""
    assert page.run("document.documentElement.scrollWidth") == 718 and page.run(f"{cut}.length") == 0
    exact = "[...document.querySelectorAll('{}')].map((node) => getComputedStyle(node).printColorAdjust)"
    for painted in (".swatch", ".bars i", ".confusion td"):
        assert set(page.run(exact.format(painted))) == {"exact"}, painted
    labels = [label for label in page.all(".controls label") if label.is_displayed()]
    assert [label.text for label in labels] == ["taught"], "the legend names the drawn runs"
    breaks = page.run("[...document.querySelectorAll('h2, h3')].map((head) => getComputedStyle(head).breakAfter)")
    assert set(breaks) == {"avoid"}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing_serious(runs, opened, width, scheme):
    if not AXE.is_file():
        pytest.skip("NO AXE-CORE, REPORTS NOT CHECKED FOR ACCESS: `sh .ci/test_programs` installs it where npm is")
    page = opened(report(*(str(runs / name) for name in ("taught", "plain"))), width=width, scheme=scheme)
    page.one(".chart summary").click()
    page.browser.execute_script(AXE.read_text())
    found = page.browser.execute_async_script("axe.run(document).then(arguments[arguments.length - 1])")
    assert len(found["passes"]) > 20
    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []
