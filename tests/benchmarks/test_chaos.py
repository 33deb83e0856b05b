"""benchmarks/chaos.py at its smallest: it kills, and finds that nothing was lost."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_kills_lose_nothing(tmp_path, demo_cache):
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "2", "--json", tmp_path / "found.json"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=580)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] == 2 and sum(found["how"].values()) == 2 and found["resumes"] >= 1
    assert found["steps_lost"] == found["steps_twice"] == 0 and found["weights_equal"] and found["losses_equal"]
