"""A signal in the middle of an evaluation: no step is lost, and the next start does the evaluation again."""

import signal

import pytest

from tests.conftest import assert_same_result, finish_ranks, metrics_of, start_ranks, wait_until

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
OPTIONS = ["--recipe=demo_plain", "--debug", "--max_steps=4", "--micro_batch_size_per_gpu=4", "--global_batch_size=8",
           "--optim.ema_decay=0.9", "--checkpoint.every_steps=100"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("eval_every_epochs", ["0.001", "0"], ids=["on the way", "at the end"])
def test_a_signal_in_an_evaluation_loses_nothing(tmp_path, demo_cache, eval_every_epochs):
    def options(workdir):
        return [*OPTIONS, f"--eval_every_epochs={eval_every_epochs}", f"--workdir={workdir}"]

    finish_ranks(start_ranks(2, "train.py", *options(tmp_path / "whole")))
    workdir = tmp_path / "run"
    processes = start_ranks(2, "-c", TRAIN_WITH_SLOW_EVALUATIONS, *options(workdir))
    wait_until(lambda: (workdir / "checkpoints" / "latest").exists(), processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish_ranks(processes)
    step = int((workdir / "checkpoints" / "latest").read_text().removeprefix("step"))
    assert f"stopped and saved at step {step};" in outputs[0] and outputs[0].count("evaluating") < 4
    assert not (workdir / "done").exists() and not any("val_top1" in line for line in metrics_of(workdir))
    finish_ranks(start_ranks(2, "train.py", *options(workdir)))
    assert_same_result(workdir, tmp_path / "whole")
