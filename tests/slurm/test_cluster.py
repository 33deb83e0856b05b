"""Jobs on a real two-node Slurm: the demo end to end (the only cluster test in `make test`), staging, launchers."""

import json
import shutil

import pytest

from tests.conftest import ROOT, free_port
from tests.slurm.conftest import TWO_BY_TWO, TWO_NODES, submit, until_completed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo_trains_on_two_nodes_of_two_ranks(cluster, tmp_path):
    options = ["--recipe", "demo", "--debug", "--workdir", tmp_path / "a run"]
    job = cluster.submit(*TWO_BY_TWO, "slurm/vitkd_base.sh", *options)
    until_completed(cluster, job)
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert summary["world_size"] == 4 and summary["teacher_top1"] > 50
    assert "command: train.py" in cluster.log(job).splitlines()[0] and "node[1-2], 4 ranks" in cluster.log(job)


def test_a_rejected_job_ends_at_once_and_its_log_is_in_the_checkouts_logs_folder(cluster, tmp_path):
    for name in ("slurm", "ds_configs", "vitkd_ds"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "logs").mkdir()
    words = [*TWO_BY_TWO, f"--chdir={tmp_path}", ROOT / "slurm" / "vitkd_tiny.sh", "--recipe=demo", "--workdri=x"]
    job = cluster.call("sbatch", "--parsable", *words).strip()  # without the --output of `submit`
    cluster.until_state(job, "COMPLETED", "FAILED", timeout_s=60)
    assert cluster.job(job)["ExitCode"] == "2:0" and cluster.job(job)["Restarts"] == "0"
    assert "did you mean --workdir" in (tmp_path / "logs" / f"vitkd_tiny-{job}.log").read_text()


def test_if_one_node_lacks_data_all_ranks_exit_and_the_job_is_not_requeued(cluster, tmp_path, small_beton):
    copies = [cluster.disk("node1") / f"x.beton{suffix}" for suffix in ("", ".json")]
    for copy, suffix in zip(copies, ("", ".json")):
        shutil.copy(f"{small_beton}{suffix}", copy)
    options = ["--recipe=demo_plain", "--debug", f"--data.train={cluster.scratch}/x.beton", f"--workdir={tmp_path}/run"]
    job = cluster.submit(*TWO_NODES, "slurm/vitkd_tiny.sh", *options)
    cluster.until_state(job, "COMPLETED", "FAILED", timeout_s=180)
    assert cluster.job(job)["ExitCode"] == "2:0" and cluster.job(job)["Restarts"] == "0"
    assert "rejected (exit code 2" in cluster.log(job) and "x.beton' must be a .beton file" in cluster.log(job)
    assert not list(tmp_path.glob("run/failures-*")), cluster.log(job)
    for copy in copies:
        copy.unlink()  # the next test inspects this disk


def test_the_doctor_examines_both_nodes_before_the_run(cluster, tmp_path):
    job = submit(cluster, tmp_path / "run", DOCTOR="1")
    until_completed(cluster, job, tmp_path / "run")
    before, _, after = cluster.log(job).partition("start: run folder")
    assert "2 ranks on 2 nodes" in before and "error" not in before and "finished: " in after, before


def test_each_node_trains_from_a_copy_on_its_own_disk(cluster, small_beton, tmp_path):
    options = ["--recipe=demo", "--debug", "--max_steps=1", f"--data.train={small_beton}", f"--workdir={tmp_path}/run"]
    job = cluster.submit(*TWO_NODES, f"--export=ALL,STAGE_DIR={cluster.scratch}", "slurm/vitkd_base.sh", *options)
    until_completed(cluster, job)
    assert "staged on every node: --data.train=" in cluster.log(job), cluster.log(job)[-6000:]
    for node in cluster.nodes:
        (copy,) = cluster.disk(node).rglob("*.beton")
        assert copy.read_bytes() == small_beton.read_bytes() and copy.with_name("small.beton.json").exists()
    used = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["data"]["train"]
    assert used.startswith(str(cluster.scratch)) and not any(cluster.scratch.iterdir()), "only the nodes see it"


TRAIN = "train.py --ds_config ds_configs/zero2.json --recipe demo --debug --max_steps=1 --workdir='WORKDIR'"
NODES = """#!/bin/bash
address=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | grep -o 'NodeAddr=[^ ]*')
export MASTER_ADDR=${address#NodeAddr=} PATH=$(dirname "$PYTHON"):$PATH
"""
# As in slurm/README.md: one launcher per node. Only the node knows SLURM_NODEID, hence bash -c.
LAUNCHERS = {
    "srun": 'unset MASTER_ADDR MASTER_PORT\nsrun --ntasks=4 "$PYTHON" TRAIN',
    "torchrun": """srun --ntasks=2 --ntasks-per-node=1 bash -c 'exec torchrun --nnodes=2 --nproc_per_node=2 \\
        --node_rank=$SLURM_NODEID --master_addr=$MASTER_ADDR --master_port=$MASTER_PORT "$@"' node TRAIN""",
    "deepspeed": """printf '%s slots=2\\n' $(scontrol show hostnames "$SLURM_JOB_NODELIST") >'WORKDIR.hosts'
srun --ntasks=2 --ntasks-per-node=1 bash -c 'exec deepspeed --hostfile="$1" --no_ssh --node_rank=$SLURM_NODEID \\
        --master_addr=$MASTER_ADDR --master_port=$MASTER_PORT "${@:2}"' node 'WORKDIR.hosts' TRAIN""",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_on_two_nodes_find_each_other_under(launcher, cluster, tmp_path):
    workdir, script = tmp_path / "a run", tmp_path / "job.sh"
    text = f"{NODES}export MASTER_PORT={free_port()}\n{LAUNCHERS[launcher]}\n"
    script.write_text(text.replace("TRAIN", TRAIN).replace("WORKDIR", f"{workdir}"))
    job = cluster.submit("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", script)
    until_completed(cluster, job)
    assert json.loads((workdir / "summary.json").read_text())["world_size"] == 4
