"""The checks of `make gpu`: rows while they run, and errors that they must notice. Training is replaced."""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch._inductor import config
from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

from benchmarks import gpu_checks

LOSSES = [5 - 0.1 * step for step in range(gpu_checks.STEPS)]


class Killed(BaseException):
    """End of a process that is killed."""


def test_each_row_is_written_before_the_next_check_starts(monkeypatch, tmp_path):
    rows = tmp_path / "rows.json"
    found = []

    def read(folder):
        found.append(len(json.loads(rows.read_text())) if rows.exists() else 0)
        if len(found) == 3:
            raise Killed
        assert len(found) < 2
        return "ok"

    monkeypatch.setattr(gpu_checks, "CHECKS", dict.fromkeys("abcd", read))
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", "--json", str(rows)])
    with pytest.raises(Killed):
        gpu_checks.main()
    assert found == [0, 1, 2]
    assert [row["passed"] for row in json.loads(rows.read_text())] == [True, False]


def test_checks_that_train_come_last():
    trained = [name in ("step", "resume", "graphs") for name in gpu_checks.CHECKS]
    assert trained == sorted(trained) and [*gpu_checks.CHECKS][-1] == "graphs", "the only check that compiles"


def test_the_checks_use_the_chosen_backend(monkeypatch, tmp_path):
    commands = []

    def run(command, **options):
        commands.append(command)
        Path(tmp_path, "metrics.jsonl").write_text("")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(gpu_checks.subprocess, "run", run)
    monkeypatch.setattr(gpu_checks, "CHECKS", {"a": lambda folder: str(gpu_checks.train(tmp_path))})
    monkeypatch.setattr(gpu_checks, "BACKEND", ["ffcv"])
    monkeypatch.setattr(sys, "argv", ["gpu_checks.py", "--backend", "torchvision"])
    monkeypatch.setattr(gpu_checks.os, "_exit", lambda code: None)
    gpu_checks.main()
    assert "--data.backend=torchvision" in commands[0]


def trained(monkeypatch, *, resumed):
    """Replace training. Record each training's flags and variables."""
    calls = []

    def train(folder, *flags, **variables):
        calls.append((flags, variables))
        is_resumed = any(flag.startswith("--resume=") for flag in flags)
        return [{"total": loss} for loss in (resumed if is_resumed else LOSSES)]

    monkeypatch.setattr(gpu_checks, "train", train)
    return calls


def test_cuda_graphs_are_resumed_and_a_skipped_graph_is_an_error(monkeypatch):
    calls = trained(monkeypatch, resumed=LOSSES[gpu_checks.STOP :])
    gpu_checks.check_graphs(Path("folder"))
    recorded = [(flags, variables) for flags, variables in calls if "--compile=reduce-overhead" in flags]
    assert len(calls) == 3 and len(recorded) == 2
    assert all(variables == gpu_checks.NO_SKIPS for _, variables in recorded)
    assert f"--resume=folder/graphs/checkpoints/step{gpu_checks.STOP:08d}" in recorded[1][0]
    with config.patch({"triton.cudagraph_or_error": True}), pytest.raises(RuntimeError, match="skipping cudagraphs"):
        log_cudagraph_skip_and_bump_counter("skipping cudagraphs due to a CPU tensor")


def test_the_variable_is_the_one_that_torch_reads():
    (name,) = gpu_checks.NO_SKIPS
    assert name in Path(config.__file__).read_text() and name not in os.environ


@pytest.mark.parametrize("resumed", [LOSSES[: -gpu_checks.STOP], LOSSES[gpu_checks.STOP + 1 :]])
def test_a_resumed_run_with_other_losses_fails(monkeypatch, resumed):
    trained(monkeypatch, resumed=resumed)
    with pytest.raises(AssertionError):
        gpu_checks.check_graphs(Path("folder"))
