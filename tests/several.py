"""Run several train.py commands in one process: read their options from a JSON file, replace it with their outcomes."""

import io
import json
import logging
import sys
from pathlib import Path

from vitkd_ds.cli import parse_run
from vitkd_ds.engine import processes, ranks
from vitkd_ds.train import console
from vitkd_ds.train.loop import train


def outcome_of(options):
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("vitkd_ds").addHandler(handler)
    flags = {key: value or "true" for key, _, value in (option[2:].partition("=") for option in options)}
    outcome = {"summary": None, "refused": ""}
    try:
        outcome["summary"] = train(parse_run((), flags))
    except ValueError as error:
        outcome["refused"] = str(error)
    logging.getLogger("vitkd_ds").removeHandler(handler)
    return outcome | {"said": said.getvalue()}


if __name__ == "__main__":
    console.install()
    path = Path(sys.argv[1])
    outcomes = [outcome_of(options) for options in json.loads(path.read_text())]
    if ranks.rank() == 0:
        path.write_text(json.dumps(outcomes))
    processes.leave()
