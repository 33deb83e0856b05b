"""benchmarks/chaos.py at its smallest size: it kills a run and confirms that nothing was lost."""

import json
import subprocess
import sys

import pytest

from benchmarks import network
from tests.conftest import ROOT
from tests.slurm import cluster

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def two_kills(tmp_path, *options):
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "2", *options, "--json", tmp_path / "found.json"]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        assert process.wait(500) == 0
    finally:
        process.terminate()  # it ends the processes that it started
        process.wait(90)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps_lost"] == found["steps_twice"] == 0 and found["weights_equal"] and found["losses_equal"]
    return found


def test_two_kills_lose_nothing(tmp_path, demo_cache):
    found = two_kills(tmp_path)
    assert found["kills"] == 2 and sum(found["how"].values()) == 2 and found["resumes"] >= 1


@pytest.mark.slurm
def test_faults_in_a_job_lose_nothing(tmp_path, demo_cache):
    if reason := cluster.why_not() or network.why_not():
        pytest.skip(reason)
    found = two_kills(tmp_path, "--slurm")
    assert 1 <= found["kills"] <= 7 and found["submitted"] >= 1
