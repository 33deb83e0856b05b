"""The site: mkdocs builds it with warnings and broken links as errors, and it needs no network."""

import re
import subprocess
import sys

import pytest
from selenium.webdriver.support.ui import WebDriverWait

from tests.commands.report.conftest import browser  # noqa: F401, the fixture
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("slurm/*.md"), *ROOT.glob("ds_configs/*.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_every_page_is_in_the_site_and_the_first_one_leads_to_each(site):
    first = (site / "index.html").read_text()
    for page in PAGES:
        name = "index" if page.name == "README.md" else page.stem
        path = (page.relative_to(ROOT).parent / f"{name}.html").as_posix()
        assert (site / path).is_file(), path
        assert path == "index.html" or f'href="{path}"' in first, f"{path} must be in the nav of mkdocs.yml"


def test_files_linked_from_pages_are_in_the_site_unchanged(site):
    for name in ("vitkd_ds/config/run.py", "ds_configs/zero2.json", "vitkd_ds/data/demo/LICENSE"):
        assert (site / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_reference_shows_names_arguments_and_sources_from_docstrings(site):
    text = re.sub(r"<[^>]+>", "", (site / "reference.html").read_text())
    for wanted in ("nkd_loss", "ViTKDLoss", "build_loader", "AugmentConfig", "tau, the divisor of the logits in the",
                   "arXiv 2209.02432", "softmaxes of the other K - 1 logits"):  # fmt: skip
        assert wanted in text, wanted


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'(?:<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href|src)="(https?:[^"]*)"', page.read_text()
        )
        assert not fetched, page


def test_the_search_works_from_local_files(site, browser):  # noqa: F811
    browser.get((site / "docs" / "data.html").as_uri())
    field = browser.find_element("css selector", "[data-md-component=search-query]")
    browser.execute_script("arguments[0].focus()", field)
    field.send_keys("offload")
    found = ".md-search-result__item a[href*='teachers.html'], .md-search-result__item a[href*='training.html']"
    WebDriverWait(browser, 30).until(lambda driver: driver.find_elements("css selector", found))


def test_tables_fit_a_page_of_1280_pixels(site, browser):  # noqa: F811
    browser.set_window_size(1280, 900)
    browser.get((site / "benchmarks" / "RESULTS.html").as_uri())
    wide = """return [...document.querySelectorAll(".md-typeset__scrollwrap")]
        .filter(wrap => wrap.scrollWidth > wrap.clientWidth).map(wrap => wrap.innerText.slice(0, 80))"""
    WebDriverWait(browser, 30).until(
        lambda driver: driver.find_elements("css selector", ".md-typeset__scrollwrap"),
    )
    assert browser.execute_script(wide) == []


def test_the_first_pages_results_fit_1280_pixels(site, browser):  # noqa: F811
    browser.set_window_size(1280, 900)
    browser.get((site / "index.html").as_uri())
    find = "[...document.querySelectorAll('pre code')].find((code) => code.innerText.includes('student top-1'))"
    cut = f"const table = {find}; return table.scrollWidth - table.clientWidth"
    assert browser.execute_script(cut) == 0
