"""train.py finds its ranks by itself under srun, torchrun and deepspeed: two ranks on each of two virtual nodes."""

import json

import pytest

from tests.slurm.runs import until_completed

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = "train.py --ds_config ds_configs/zero2.json --recipe demo --debug --max_steps=1 --workdir='{workdir}'"
NODES = """
address=$(scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | grep -o 'NodeAddr=[^ ]*')
export MASTER_ADDR=${{address#NodeAddr=}} MASTER_PORT={port} PATH=$(dirname "$PYTHON"):$PATH
"""
# As slurm/README.md gives them: one launcher per node. SLURM_NODEID is known on the node only, hence bash -c.
LAUNCHERS = {
    "srun": 'srun --ntasks=4 "$PYTHON" {train}',
    "torchrun": """srun --ntasks=2 --ntasks-per-node=1 bash -c 'exec torchrun --nnodes=2 --nproc_per_node=2 \\
        --node_rank=$SLURM_NODEID --master_addr=$MASTER_ADDR --master_port=$MASTER_PORT "$@"' node {train}""",
    "deepspeed": """printf '%s slots=2\\n' $(scontrol show hostnames "$SLURM_JOB_NODELIST") >'{workdir}.hosts'
srun --ntasks=2 --ntasks-per-node=1 bash -c 'exec deepspeed --hostfile="$1" --no_ssh --node_rank=$SLURM_NODEID \\
        --master_addr=$MASTER_ADDR --master_port=$MASTER_PORT "${{@:2}}"' node '{workdir}.hosts' {train}""",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_ranks_on_two_nodes_find_each_other_under(launcher, cluster, tmp_path):
    workdir = tmp_path / "a run"
    script = tmp_path / "job.sh"
    setup = NODES if launcher != "srun" else ""
    text = (setup + LAUNCHERS[launcher]).replace("{train}", TRAIN)
    script.write_text("#!/bin/bash\n" + text.format(workdir=workdir, port=20000 + list(LAUNCHERS).index(launcher)))
    job = cluster.submit("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", script)
    until_completed(cluster, job)
    assert json.loads((workdir / "summary.json").read_text())["world_size"] == 4
