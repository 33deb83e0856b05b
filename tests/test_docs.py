"""The documents: commands parse, links lead somewhere, and nothing speaks of a machine."""

import re
import shlex

import pytest

from tests.conftest import ROOT
from vitkd_ds import cli
from vitkd_ds.config.overrides import apply_overrides
from vitkd_ds.config.run import check_run
from vitkd_ds.recipes import build_run

DOCUMENTS = sorted(ROOT.glob("*.md"))
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.strip()
]
RECIPE_OF_SCRIPT = {
    f"slurm/vitkd_{size}.sh": re.search(r"RECIPE=(\w+)", (ROOT / f"slurm/vitkd_{size}.sh").read_text()).group(1)
    for size in ("tiny", "small", "base")
}


def flags_of(words):
    """{"optim.lr": "1e-3"} of --optim.lr=1e-3 or --optim.lr 1e-3."""
    flags, words = {}, list(words)
    while words:
        name, _, value = words.pop(0).partition("=")
        assert name.startswith("--"), name
        if not value:
            value = words.pop(0) if words and not words[0].startswith("--") else "True"
        flags[name.removeprefix("--")] = value
    return flags


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_in_the_readme_are_accepted(words):
    script = next((word for word in words if word == "train.py" or word in RECIPE_OF_SCRIPT), None)
    if script == "train.py":
        assert cli.parse_run((), flags_of(words[words.index(script) + 1 :]))
    elif script:
        run = build_run(RECIPE_OF_SCRIPT[script], debug=True)
        check_run(apply_overrides(run, flags_of(words[words.index(script) + 1 :])))
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    else:
        assert words[0] == "vitkd-ds" or words[0] == "python", words
        if words[0] == "vitkd-ds":
            assert words[1] in cli.COMMANDS
        else:
            assert (ROOT / words[1]).exists()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_no_file_that_does_not_exist(path):
    for name in re.findall(
        r"`((?:vitkd_ds|tests|ds_configs|slurm|benchmarks)/[\w./]+\.(?:py|json|sh))`", path.read_text()
    ):
        assert (ROOT / name).exists(), name
