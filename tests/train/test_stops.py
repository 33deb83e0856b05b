"""Signals, killed ranks, losses of nan, full disks and second jobs on real runs, and how the next start resumes."""

import re
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import (
    assert_same_result,
    everything_on,
    finish_ranks,
    metrics_of,
    run_command,
    start_ranks,
    wait_for_steps,
    wait_until,
)  # fmt: skip

LIMIT_S = 30
"""The README's limit for a rank that has exited, with extra time for a busy machine."""


def is_listening(process):
    """Whether Python's USR1 handler is installed, from the kernel's signal mask."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status).group(1), 16) >> (signal.SIGUSR1 - 1) & 1


def files_in(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir() if not path.name.startswith("step"))


@pytest.fixture
def command(workdir, small_beton, demo_cache):
    return ["train.py", *everything_on(workdir, small_beton)]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_resumes_bit_for_bit(whole_run, command, workdir):
    processes = start_ranks(2, *command)
    wait_for_steps(processes, workdir, 5)
    processes[1].send_signal(signal.SIGUSR1)
    outputs = finish_ranks(processes)
    assert "SIGUSR1: stopping after this step" in outputs[1] and "stopped and saved at step" in outputs[0]
    assert files_in(workdir) == ["latest"] and not (workdir / "lock").exists() and not (workdir / "done").exists()

    processes = start_ranks(2, *command)  # now in the middle of a save, and more than once
    wait_until(lambda: any((workdir / "checkpoints").glob(".step*.part")), processes)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        processes[0].send_signal(number)
        time.sleep(0.01)
    outputs = finish_ranks(processes)
    tag = (workdir / "checkpoints" / "latest").read_text()
    assert f"stopped and saved at step {int(tag.removeprefix('step'))};" in outputs[0]
    finish_ranks(start_ranks(2, *command))
    assert_same_result(workdir, whole_run)


def test_a_signal_during_the_imports_changes_nothing(command, workdir):
    processes = start_ranks(2, *command)
    wait_until(lambda: is_listening(processes[1]), processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish_ranks(processes)
    assert "stopped by a signal before the first step; nothing was changed" in outputs[0]
    assert not workdir.exists()


@pytest.mark.slow
def test_a_signal_at_the_end_of_a_run_leaves_it_finished(whole_run, small_beton):
    process = start_ranks(1, "train.py", *everything_on(whole_run, small_beton))[0]
    wait_until(lambda: is_listening(process), [process])
    process.send_signal(signal.SIGUSR1)
    assert "is already finished" in finish_ranks([process])[0]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others_within_the_stated_time(command, workdir):
    processes = start_ranks(2, *command)
    wait_for_steps(processes, workdir, 6)
    processes[1].kill()
    outputs = finish_ranks(processes, timeout=LIMIT_S, codes=[1, -signal.SIGKILL])
    assert re.search(r"rank 0, phase \w+, after \d+ updates: another rank has ended or is unreachable", outputs[0])


@pytest.mark.slow
def test_a_stalled_rank_ends_the_others_and_a_second_job_is_rejected(command, workdir):
    command += ["--timeout_minutes=0.4", "--max_steps=3000"]
    processes = start_ranks(2, *command)
    wait_for_steps(processes, workdir, 6)
    refused = run_command(sys.executable, *command, check=False)
    assert refused.returncode == 2 and "is in use by" in refused.stderr
    assert all(process.poll() is None for process in processes), "the first job continues"
    stood_still = time.monotonic()
    processes[1].send_signal(signal.SIGSTOP)  # like a rank with a hanging device: nobody closes its connections
    output = processes[0].communicate(timeout=60 * 0.4 * 1.1 + LIMIT_S)[0]
    assert processes[0].returncode == 1 and time.monotonic() - stood_still > 20
    assert re.search(r"rank 0, phase \w+, after \d+ updates: no progress for 2\d s", output)
    processes[1].kill()
    processes[1].communicate()


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_and_not_the_run(whole_run, command, workdir):
    processes = start_ranks(2, *command, "--checkpoint.max_failures=2")
    wait_until(lambda: (workdir / "checkpoints" / "latest").exists(), processes)
    resource.prlimit(processes[1].pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    outputs = finish_ranks(processes, codes=[1, 1])
    assert all("SaveError: SAVING FAILED at step" in output for output in outputs)
    assert outputs[0].count("This is failed save 1 in a row; training stops at number 2") == 1
    assert files_in(workdir) == ["latest"] and not (workdir / "lock").exists()
    finish_ranks(start_ranks(2, *command))
    assert_same_result(workdir, whole_run)


TRAIN_WITH_SLOW_EVALUATIONS = """
import time
from vitkd_ds import cli
from vitkd_ds.train import evaluate
count = evaluate._count
def slow_count(*args):
    print("evaluating", flush=True)
    time.sleep(1)
    return count(*args)
evaluate._count, evaluate.MICRO_BATCHES_PER_LOOK = slow_count, 1
cli.train_main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("eval_every_epochs", ["0.001", "0"], ids=["on the way", "at the end"])
def test_a_signal_in_an_evaluation_loses_nothing_and_the_next_start_evaluates_again(
    tmp_path, workdir, demo_cache, eval_every_epochs
):
    def options(workdir):
        return ["--recipe=demo_plain", "--debug", "--max_steps=4", "--micro_batch_size_per_gpu=4",
                "--global_batch_size=8", "--checkpoint.every_steps=100", f"--eval_every_epochs={eval_every_epochs}",
                "--optim.ema_decay=0.9", f"--workdir={workdir}"]  # fmt: skip

    finish_ranks(start_ranks(2, "train.py", *options(tmp_path / "whole")))
    processes = start_ranks(2, "-c", TRAIN_WITH_SLOW_EVALUATIONS, *options(workdir))
    wait_until(lambda: (workdir / "checkpoints" / "latest").exists(), processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish_ranks(processes)
    step = int((workdir / "checkpoints" / "latest").read_text().removeprefix("step"))
    assert f"stopped and saved at step {step};" in outputs[0] and outputs[0].count("evaluating") < 4
    assert not (workdir / "done").exists() and not any("val_top1" in line for line in metrics_of(workdir))
    finish_ranks(start_ranks(2, "train.py", *options(workdir)))
    assert_same_result(workdir, tmp_path / "whole")


def test_all_ranks_stop_and_name_step_terms_lr_and_the_last_good_checkpoint(observed):
    told = observed[2]["nonfinite"]
    for rank, text in enumerate(told):
        assert f"stopped before update 3, rank {rank}, lr " in text
        assert "last good checkpoint step00000002" in text
    assert "ce nan" in told[1] and "ce nan" not in told[0]
    assert not observed[2]["nonfinite is done"]
