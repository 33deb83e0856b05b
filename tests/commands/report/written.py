"""Write a report and read its contents."""

import json
from html.parser import HTMLParser
from pathlib import Path

from vitkd_ds.commands.compare.runs import Result, evaluations
from vitkd_ds.commands.report import report


class Page(HTMLParser):
    """Parsed page: tables (id or class to rows of cells), all text, and the contents of scripts."""

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


def made(lines=(), *, folder="run", name="run", summary=None, **config):
    """Build the result of a run folder by hand."""
    config = {"run": {}, "plan": {"total_steps": 2000, "steps_per_epoch": 10}} | config
    return Result(Path(folder), name, config, list(lines), [{}, *evaluations(lines)][-1], summary)
