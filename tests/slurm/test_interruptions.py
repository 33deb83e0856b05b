"""Early ends of a job on a real Slurm: the run resumes automatically and ends with the same weights."""

import os
import re
import signal

import pytest

from tests.slurm.conftest import (
    OPTIONS,
    SLURMD_TIMEOUT_S,
    TWO_NODES,
    saved_step,
    started,
    submit,
    until_completed,
    until_same,
    until_step,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]

KILL_WAIT_S = 30
"""Slurm's default, and the test cluster's: time until SIGKILL for ranks that survive a failed step."""


def start_of(cluster, job):
    assert "failure" not in cluster.log(job)
    return cluster.log(job).count(" ranks, start ")


def ranks_of(cluster, workdir):
    """Running processes of the run's train.py."""
    return [pid for pid, command in cluster.processes("train.py").items() if f"{workdir}" in command
            and "srun" not in command and "slurmstepd" not in command]  # fmt: skip


def test_slurms_own_signal_before_the_time_limit_saves_and_resumes_to_the_same_weights(cluster, whole, workdir):
    job = started(cluster, workdir, flags=("--time=2", "--signal=B:USR1@60"))
    waiting = ranks_of(cluster, workdir)[0]
    os.kill(waiting, signal.SIGSTOP)  # the other ranks wait for it, so the run cannot finish before the signal
    cluster.until_logged(job, "USR1: asking the ranks to save and stop", timeout_s=90)
    os.kill(waiting, signal.SIGCONT)
    cluster.until_logged(job, "requeue: the next start continues from checkpoint step", timeout_s=60)
    assert saved_step(workdir)
    until_same(cluster, job, workdir, whole)
    assert start_of(cluster, job) >= 2 and cluster.job(job)["TimeLimit"] == "00:02:00"


def test_usr1_during_imports_counts_and_a_manual_requeue_saves(cluster, whole, workdir):
    job = submit(cluster, workdir)
    cluster.until_logged(job, "start: run folder")
    cluster.until(lambda: len(ranks_of(cluster, workdir)) >= 2, "two ranks", 30, job)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until_logged(job, "start: run folder", times=2)
    until_step(cluster, job, workdir, 13)
    cluster.call("scontrol", "requeue", job)
    until_same(cluster, job, workdir, whole)
    assert cluster.log(job).count(" ranks, start ") == 3


def test_a_preempted_job_makes_way_and_resumes_to_the_same_weights(cluster, whole, workdir):
    job = started(cluster, workdir)
    urgent = cluster.submit("--partition=urgent", "--nodes=2", "--exclusive", "--wrap", "srun sleep 1")
    cluster.until_state(urgent, "COMPLETED", timeout_s=90)
    assert saved_step(workdir)
    until_same(cluster, job, workdir, whole)
    # The script requeues the job. Slurm may requeue it once more after the end; that start finds the run finished.
    assert start_of(cluster, job) in (2, 3)


@pytest.mark.parametrize("code, limit_s", [(1, KILL_WAIT_S), (0, 60 + KILL_WAIT_S)], ids=["fails", "leaves"])
def test_unaware_ranks_are_ended_when_one(code, limit_s, cluster, tmp_path):
    """As with NCCL: after one rank has exited, another may hang in a collective and ignore TERM."""
    fake = tmp_path / "python"
    fake.write_text(f"""#!/bin/bash
case "$*" in *describe_run*) echo 'workdir={tmp_path}/run' && exit ;; esac
[ "$SLURM_PROCID" != 1 ] || exit {code}
trap '' TERM
exec sleep 600
""")
    fake.chmod(0o755)
    job = submit(cluster, tmp_path / "run", PYTHON=str(fake), MAX_FAILURES="0")
    cluster.until_logged(job, "start: run folder", timeout_s=60)
    cluster.until_state(job, "FAILED", timeout_s=limit_s + 30)


@pytest.mark.parametrize("lost", [
    "a rank", pytest.param("the slurmd of a node", marks=pytest.mark.long), "a node",
])  # fmt: skip
def test_losing_a_rank_or_node_requeues_the_job_which_resumes_to_the_same_weights(cluster, whole, workdir, lost):
    job = started(cluster, workdir)
    if lost == "a rank":
        os.kill(ranks_of(cluster, workdir)[-1], signal.SIGKILL)
        cluster.until_logged(job, "failure 1, MAX_FAILURES=3", timeout_s=KILL_WAIT_S + 30)
    else:
        cluster.kill_node("node2", is_power_lost=lost == "a node")
        if lost != "a node":
            os.kill(ranks_of(cluster, workdir)[0], signal.SIGSTOP)  # the ranks could finish without their slurmd
        cluster.until(lambda: cluster.job(job)["JobState"] != "RUNNING", "requeued", SLURMD_TIMEOUT_S + 60, job)
        cluster.start_node("node2")
    cluster.until_logged(job, "start: run folder", times=2)
    until_same(cluster, job, workdir, whole)


@pytest.mark.long
def test_a_job_whose_slurmstepd_dies_comes_back_before_its_time_limit(cluster, workdir):
    job = started(cluster, workdir, flags=("--nodes=1", "--time=3", "--signal=B:USR1@90"))
    steps = {pid: name for pid, name in cluster.processes("slurmstepd").items() if re.search(rf"\[{job}\.\d", name)}
    for pid in (*steps, *ranks_of(cluster, workdir)):
        os.kill(pid, signal.SIGKILL)
    assert len(steps) == 1, steps
    cluster.until_logged(job, "have not stopped 60 s before the time limit; killing srun", timeout_s=240)
    cluster.until_logged(job, "requeue: the next start continues from checkpoint step", timeout_s=60)
    until_completed(cluster, job, workdir)
    assert "TIME LIMIT" not in cluster.log(job)


def test_a_cancelled_job_saves_and_stays_cancelled_and_another_number_of_ranks_takes_it_over(cluster, workdir):
    job = started(cluster, workdir)
    cluster.call("scancel", job)
    cluster.until(lambda: not ranks_of(cluster, workdir), "no rank runs", KILL_WAIT_S + 30, job)
    step = saved_step(workdir)
    again = submit(cluster, workdir, flags=("--nodes=1",))
    until_completed(cluster, again, workdir)
    assert f"step {step} of 60, 1 rank" in cluster.log(again)
    assert cluster.job(job)["JobState"] == "CANCELLED" and start_of(cluster, job) == 1


def test_a_job_submitted_by_an_array_task_requeues_itself_and_not_the_task(cluster, whole, workdir):
    inner = f"slurm/vitkd_tiny.sh {' '.join(OPTIONS)} --workdir={workdir}"
    flags = f"--parsable --output={cluster.folder}/job-%j.log {' '.join(TWO_NODES)}"
    words = ["--array=3-3", "--cpus-per-task=1", "--wrap", f"sbatch {flags} {inner}; sleep 600"]
    task = cluster.submit(*words, "--export=ALL,SLURM_RESTART_COUNT=1")
    cluster.until(lambda: cluster.log(task).strip().isdigit(), "the inner job", 60)
    job = cluster.log(task).strip()
    until_step(cluster, job, workdir, 13)
    cluster.call("scancel", "--batch", "--signal=USR1", job)
    cluster.until_logged(job, "requeue: the next start continues from checkpoint")
    until_same(cluster, job, workdir, whole)
    assert start_of(cluster, job) == 2
    assert cluster.job(task)["JobState"] == "RUNNING" and cluster.job(task)["Restarts"] == "0"
    cluster.call("scancel", task)
