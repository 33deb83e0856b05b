"""The scaling benchmark at toy size: real ranks on hosts of their own, and the bytes that their interfaces count."""

import json
import sys

import pytest

from benchmarks.network import why_not
from tests.conftest import ROOT, run_command


@pytest.mark.slow
def test_two_hosts_send_what_the_plan_predicts(tmp_path):
    if reason := why_not("tc", "taskset"):
        pytest.skip(f"SCALING NOT TESTED: {reason}")
    size = ["--debug", "--rounds=1", "--steps=2", "--ranks", "2", "--links", "1000"]
    done = run_command(sys.executable, "benchmarks/scaling.py", *size, "--json", tmp_path / "rows.json", cwd=ROOT)
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert row["ranks"] == 2 and row["step_s"] > 0 and row["compute_s"] > 0
    assert row["formula_bytes"] < row["sent_bytes"] < 1.1 * row["formula_bytes"], "more than headers and two numbers"
    assert "| 1000 | 2 |" in done.stdout
