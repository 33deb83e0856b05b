"""A sweep as a job array on a real Slurm: every task trains its own run and is requeued after a stop."""

import json

import pytest

from tests.conftest import run_command
from tests.slurm.conftest import steps_done

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

SWEEP = [
    "--recipes", "demo_plain", "--grid.optim.lr=1e-3,2e-3", "--seeds=2", "--max_steps=200", "--global_batch_size=8",
    "--micro_batch_size_per_gpu=8", "--data.max_val_images=100", "--optim.warmup_epochs=0.01", "--log_every_steps=1",
]  # fmt: skip
RUNS = [f"demo_plain,optim.lr={lr}/seed{seed}" for seed in (0, 1) for lr in ("1e-3", "2e-3")]


def test_each_task_trains_its_run_and_even_the_last_task_is_requeued(cluster, tmp_path):
    flags = ["--array=0-3", "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=1", f"--output={tmp_path}/%a.log"]
    array = cluster.submit(*flags, "slurm/sweep.sh", *SWEEP, f"--workdir={tmp_path}")
    last = tmp_path / RUNS[3]
    cluster.until(lambda: steps_done(last) >= 5, "the last task's fifth step", 300)
    cluster.call("scancel", "--batch", "--signal=USR1", f"{array}_3")
    cluster.until(lambda: all((tmp_path / run / "done").exists() for run in RUNS), "four finished runs", 500)
    log = (tmp_path / "3.log").read_text()
    assert "requeue: the next start continues from checkpoint" in log and log.count(" ranks, start ") >= 2, log
    for run in RUNS:
        config = json.loads((tmp_path / run / "config.json").read_text())["run"]
        assert config["seed"] == int(run[-1]) and f"optim.lr={config['optim']['lr'] * 1e3:g}e-3" in run
    done = run_command("vitkd-ds", "sweep", *SWEEP, f"--workdir={tmp_path}")
    assert "4 of 4 runs are finished" in done.stderr and done.stdout.count("demo_plain") == 2
