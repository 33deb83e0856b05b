"""Tracing a few steps, and a deterministic run, with real runs."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

from tests.checkpoint.test_failing_saves import limit_file_size
from tests.conftest import ROOT, run_command
from vitkd_ds.train.profile import PARTS, WAIT, WARMUP, profiled

FLAGS = (
    "--recipe=demo", "--debug", "--global_batch_size=8", "--micro_batch_size_per_gpu=4", "--log_every_steps=1",
    "--checkpoint.every_steps=1000", "--eval_every_epochs=1000",
)  # fmt: skip
DETERMINISTIC = """
import torch
from torch._inductor import config
from vitkd_ds.engine.processes import make_deterministic
make_deterministic()
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
print(config.deterministic, torch.backends.cudnn.benchmark)
"""


def test_a_trace_has_the_phases_of_the_requested_number_of_steps(tmp_path):
    steps = WAIT + WARMUP + 3
    args = ("--deterministic", "--profile=2", f"--max_steps={steps}", f"--workdir={tmp_path}")
    run_command(sys.executable, ROOT / "train.py", *FLAGS, *args, cwd=ROOT)
    events = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))["traceEvents"]
    named = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert {part: named[part] for part in PARTS} == {"data": 8, "teacher": 4, "forward": 4, "backward": 4, "update": 2}
    table = (tmp_path / "profile" / "table.txt").read_text().splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in table[1 : 1 + len(PARTS)]}
    assert [rows[part][0] for part in PARTS] == ["8", "4", "4", "4", "2"]
    assert all(float(rows[part][1]) > 0 for part in PARTS)
    assert json.loads((tmp_path / "config.json").read_text())["run"]["deterministic"] is True


def test_torch_is_told_to_be_deterministic():
    done = subprocess.run([sys.executable, "-c", DETERMINISTIC], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[-4:] == ["True", "False", "True", "False"]


@pytest.mark.parametrize("trouble", ["a file in place of the folder", "a full disk", "no trace"])
def test_an_unwritable_trace_gives_a_warning_and_the_run_continues(tmp_path, caplog, trouble):
    if trouble == "a file in place of the folder":
        (tmp_path / "profile").touch()
    if trouble == "no trace":
        (tmp_path / "profile" / "trace.json.gz").mkdir(parents=True)
    with profiled(1, tmp_path) as profiler:
        for step in range(WAIT + WARMUP + 1):
            torch.ones(2).sum()
            is_full = trouble == "a full disk" and step == WAIT + WARMUP
            limit_file_size(100 if is_full else -1)
            profiler.step()
            limit_file_size(-1)
    assert caplog.text.count(f"the trace could not be written to {tmp_path / 'profile'}: ") == 1
