"""Help as a user reads it: the command index, the version, and each command's page, fitted to the terminal."""

import fcntl
import importlib
import inspect
import os
import pty
import re
import struct
import termios
from contextlib import suppress

import pytest

from vitkd_ds import __version__, cli
from vitkd_ds.commands.doctor import rows
from vitkd_ds.commands.manual import GROUPS, PAGES
from vitkd_ds.train.console import Progress


def test_the_index_groups_the_commands_with_one_line_each_on_80_columns(vitkd_ds, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = vitkd_ds()
    assert text == vitkd_ds("help") == vitkd_ds("--help") == vitkd_ds("-h")
    assert [name for names in GROUPS.values() for name in names] == re.findall(r"^  (\w+) ", text, re.M)
    assert sorted(PAGES) == sorted(cli.COMMANDS) == sorted(re.findall(r"^  (\w+) .*\.$", text, re.M))


def test_the_version_matches_the_package(vitkd_ds):
    assert vitkd_ds("--version") == vitkd_ds("--version", main=cli.train_main) == f"vitkd_ds {__version__}\n"


@pytest.mark.parametrize("name", PAGES)
def test_each_commands_help_explains_every_word_and_option_and_shows_two_examples(vitkd_ds, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    text = vitkd_ds(name, "--help")
    page = PAGES[name]
    for key in [*page.words, *(f"--{key}" for key in page.options)]:
        about = re.search(rf"^  {re.escape(key)}(?: .*)?\n      (\S.*)", text, re.M)
        assert about and len(about[1]) > 10, key
    assert len(re.findall(r"^  (?:vitkd-ds|srun|eval) ", text.partition("examples:\n")[2], re.M)) == 2


@pytest.mark.parametrize("name, function", {
    "pack": "pack.images.pack", "eval": "evaluate.evaluate_exported", "export": "export.export",
    "compare": "compare.compare", "report": "report.report", "predict": "predict.predict", "adopt": "pack.adopt.adopt",
    "check": "pack.adopt.check",
}.items())  # fmt: skip
def test_a_help_page_has_the_options_of_its_function(name, function):
    module, _, attribute = function.rpartition(".")
    found = inspect.signature(getattr(importlib.import_module(f"vitkd_ds.commands.{module}"), attribute)).parameters
    assert {key for key, each in found.items() if each.kind is each.KEYWORD_ONLY} == PAGES[name].options.keys()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("words", ["help", "recipes", "help pack", "help sweep", "help export", "help train"])
def test_text_keeps_within_the_terminal_and_breaks_between_words(vitkd_ds, monkeypatch, width, words):
    monkeypatch.setenv("COLUMNS", "1000")
    whole = vitkd_ds(*words.split()).replace("\\\n", "").split()
    monkeypatch.setenv("COLUMNS", str(width))
    text = vitkd_ds(*words.split())
    assert text.replace("\\\n", "").split() == whole
    shorter = [line for line in text.splitlines() if " " in line.strip(" \\")]  # a path may be longer than a line
    assert width - 20 < max(map(len, shorter)) <= width


def test_the_table_of_doctor_is_as_wide_as_the_terminal_and_breaks_between_words(monkeypatch):
    words = "a checkpoint of the self-supervised teacher in /a/folder/with-a/name.pt cannot be found".split()
    found = [rows.error("models", " ".join(words), " ".join(words))]
    for width in (80, 100, 160):
        monkeypatch.setenv("COLUMNS", str(width))
        text = rows.table(found)
        assert width - 40 < max(map(len, text.splitlines())) <= width
        assert text.split()[-3 - 2 * len(words) - 1 : -3] == [*words, "->", *words]


@pytest.mark.parametrize("words", ["help", "recipes", "help report", "pakc"])
def test_a_terminal_with_no_color_gets_no_colours(vitkd_ds, monkeypatch, words):
    monkeypatch.setenv("NO_COLOR", "1")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(slave, "w") as terminal:
        monkeypatch.setattr("sys.stdout", terminal)
        monkeypatch.setattr("sys.stderr", terminal)
        with suppress(SystemExit):
            vitkd_ds(*words.split())
        progress = Progress(9, start_step=0)
        progress.show(1, "text", "line")
        progress.close()
        print("THE END", file=terminal, flush=True)
        text = ""
        while "THE END" not in text:
            text += os.read(master, 1 << 16).decode()
    os.close(master)
    assert "/9 [" in text
    assert "\x1b[" not in text.replace("\x1b[A", "")
