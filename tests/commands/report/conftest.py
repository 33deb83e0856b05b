"""Runs to report on (a distilled one that was resumed, and a plain one), and a browser."""

import base64
import shutil
import time

import pytest

from tests.conftest import ROOT, run_several

AXE = ROOT / "build" / "node" / "node_modules" / "axe-core" / "axe.min.js"
"""File that .ci/test_programs installs."""
STEPS, STOPPED = 14, 7


@pytest.fixture(scope="session")
def reported(tmp_path_factory, small_beton, demo_cache):
    """Train the runs taught and plain for two evaluated epochs of 7 steps; taught is resumed after the first epoch."""
    folder = tmp_path_factory.mktemp("reported")

    def options(name, recipe, *more):
        return [
            f"--recipe={recipe}",
            "--debug",
            f"--workdir={folder}/{name}",
            f"--data.train={small_beton}",
            "--global_batch_size=8",
            "--eval_every_epochs=1",
            "--checkpoint.every_steps=7",
            *more,
        ]

    commands = [
        options("taught", "demo", f"--max_steps={STOPPED}"),
        options("taught", "demo", "--max_steps=14", "--extend"),
        options("plain", "demo_plain", "--max_steps=14", "--optim.lr=0.002"),
    ]
    assert not any(outcome["refused"] for outcome in run_several(1, folder / "commands", commands))
    return folder


@pytest.fixture
def runs(reported, tmp_path):
    """Return copies of the runs that a test may change."""
    for name in ("taught", "plain"):
        shutil.copytree(reported / name, tmp_path / name)
    return tmp_path


@pytest.fixture(scope="session")
def browser():
    """Start a headless Chromium; skip the test if there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip(
            "NO CHROMIUM, REPORTS NOT OPENED: as root, `sh .ci/test_programs` installs it with its chromedriver"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver))
    yield driver
    driver.quit()


class Page:
    """Report opened in the browser."""

    def __init__(self, browser, path, *, width=1280, scheme="light"):
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser.get(path.as_uri())
        self.until(lambda: self.all(".chart svg *"), "the charts are drawn")

    def run(self, script, *values):
        return self.browser.execute_script(f"return {script}", *values)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def until(self, is_so, what, seconds=10):
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.02)

    def hover(self, key, part):
        """Hover over a position of a chart, 0 to 1 of its width; return the tooltip's text."""
        from selenium.webdriver import ActionChains

        picture = self.one(f'.chart[data-key="{key}"] svg')
        self.run("arguments[0].scrollIntoView({block: 'center'})", picture)
        left, right = 50, 10  # of page.js
        room = picture.size["width"] - left - right
        x = round(left + part * room - picture.size["width"] / 2)
        ActionChains(self.browser, duration=0).move_to_element_with_offset(picture, x, 0).perform()
        tip = self.one(f'.chart[data-key="{key}"] .tip')
        self.until(tip.is_displayed, f"the values of {key}")
        return tip.text

    def rows(self, table):
        """Return the cells of the visible rows."""
        script = """[...document.querySelectorAll(`#${arguments[0]} tbody tr`)].filter((row) => row.offsetParent)
            .map((row) => [...row.cells].map((cell) => cell.innerText))"""
        return self.run(script, table)

    def picture(self):
        """Return a PNG of the whole page."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("document.documentElement.clientWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        return base64.b64decode(taken["data"])

    def complaints(self):
        """Return the browser's log messages since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def opened(browser):
    """Return a function that opens a report; the browser's console must stay empty."""
    browser.get_log("browser")
    pages = []

    def open_page(path, **options):
        pages.append(Page(browser, path, **options))
        return pages[-1]

    yield open_page
    assert not pages[-1].complaints()
