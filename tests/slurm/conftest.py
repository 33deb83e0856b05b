"""Helpers for interrupted Slurm jobs: a run with all resumable features on two nodes, and its comparison."""

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, running_cluster

SLURMD_TIMEOUT_S = 15
"""SlurmdTimeout of the test cluster; Slurm's default is 300."""
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1"]
TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2"]
OPTIONS = [
    "--recipe=demo", "--debug", "--max_steps=60", "--global_batch_size=8", "--micro_batch_size_per_gpu=1",
    "--checkpoint.every_steps=10", "--optim.ema_decay=0.9", "--student.drop_path_rate=0.2",
    "--augment.mixup_alpha=0.8", "--losses.nkd.schedule=cosine",
]  # fmt: skip


def submit(cluster: Cluster, workdir: Path, *options: str, flags: tuple = (), **environ: str) -> str:
    """Submit the run with the shipped script; return the job's id."""
    exports = ",".join(["--export=ALL", *(f"{name}={text}" for name, text in environ.items())])
    command = ["slurm/vitkd_tiny.sh", *OPTIONS, f"--workdir={workdir}", *options]
    return cluster.submit(*TWO_NODES, exports, *flags, *command)


def started(cluster: Cluster, workdir: Path, *options: str, flags: tuple = ()) -> str:
    """Submit the run, wait until it trains, and return the job's id."""
    job = submit(cluster, workdir, *options, flags=flags)
    until_step(cluster, job, workdir, 13)
    return job


def steps_done(workdir: Path) -> int:
    log = workdir / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def saved_step(workdir: Path) -> int:
    """Return the step of the last checkpoint, which a signal must have caused."""
    step = int((workdir / "checkpoints" / "latest").read_text().removeprefix("step"))
    assert step % 10, f"the checkpoint at step {step} is a regular one"
    return step


def until_step(cluster: Cluster, job: str, workdir: Path, step: int) -> None:
    cluster.until(lambda: steps_done(workdir) >= step, f"step {step}", 240, job)
    assert steps_done(workdir) < 55, "the run is too fast for this test; give it more steps"


def until_completed(cluster: Cluster, job: str, workdir: Path | None = None, timeout_s: float = 400) -> None:
    """Wait until a job is completed; its run must be finished too."""
    cluster.until_state(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", timeout_s=timeout_s)
    assert cluster.job(job)["JobState"] == "COMPLETED", cluster.log(job)[-6000:]
    assert workdir is None or (workdir / "done").exists(), cluster.log(job)[-6000:]


def until_same(cluster: Cluster, job: str, workdir: Path, whole: Path) -> None:
    """Wait until a job is completed; its student must equal that of `whole` bit for bit, with each step logged once."""
    until_completed(cluster, job, workdir)
    assert (workdir / "student.safetensors").read_bytes() == (whole / "student.safetensors").read_bytes()
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "total" in line] == list(range(1, 61))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, demo_cache):
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """Return the folder of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    until_completed(cluster, submit(cluster, workdir), workdir)
    return workdir
