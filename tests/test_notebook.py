"""The demo notebook: its ten cells run one after the other, with a few steps instead of the full training."""

import json
import re
import sys

import pytest

from tests.conftest import ROOT, run_command

CELLS = json.loads((ROOT / "docs/demo.ipynb").read_text())["cells"]


def test_the_notebook_has_ten_cells_without_outputs_and_its_pages_exist():
    assert len(CELLS) == 10
    assert not any(cell.get("outputs") for cell in CELLS)
    text = "".join("".join(cell["source"]) for cell in CELLS)
    for page in re.findall(r"\]\((\w+\.md)\)", text):
        assert (ROOT / "docs" / page).is_file(), page


def test_the_readme_links_the_notebook_and_its_first_cell_says_how_to_start_it():
    assert "](docs/demo.ipynb)" in (ROOT / "README.md").read_text()
    assert "`.venv/bin/jupyter lab docs/demo.ipynb`" in "".join(CELLS[0]["source"])


@pytest.mark.slow
def test_the_cells_run(tmp_path, demo_cache):
    code = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    taste, replaced = re.subn(r"^STEPS = 0 ", "STEPS = 30 ", code, flags=re.M)
    assert replaced == 1
    script = tmp_path / "notebook.py"
    script.write_text(f"import matplotlib\nmatplotlib.use('Agg')\n{taste}")
    said = run_command(sys.executable, script, cwd=tmp_path).stdout
    assert "group 2 - group 1" in said
    summary = json.loads((tmp_path / "runs/notebook/distilled/summary.json").read_text())
    right = float(re.search(r"^([\d.]+)% of 2000 right$", said, re.M)[1])
    assert summary["steps"] == 30 and right == pytest.approx(summary["student_top1"], abs=0.06)
