"""The network between two nodes is cut while they train, on a real Slurm with per-node networks."""

import time

import pytest

from benchmarks import network
from benchmarks.network import INTERFACE, Network
from tests.slurm.cluster import running_cluster
from tests.slurm.conftest import SLURMD_TIMEOUT_S, started, until_same

pytestmark = [pytest.mark.slurm, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, demo_cache):
    if reason := network.why_not():
        pytest.skip(f"NETWORK NOT TESTED: {reason}")
    with Network(num_nodes=2) as links, running_cluster(tmp_path_factory.mktemp("slurm"), links) as cluster:
        cluster.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
        yield cluster


@pytest.mark.parametrize("node", ["node2", "node1"], ids=["of a node", "of the first node, with the job script"])
def test_a_cut_network_requeues_the_job_which_resumes_to_the_same_weights(node, cluster, whole, workdir):
    job = started(cluster, workdir, "--timeout_minutes=1")
    cluster.network.cut(node)
    cluster.until(lambda: cluster.job(job)["JobState"] != "RUNNING", "ended", SLURMD_TIMEOUT_S + 60, job)
    # KillWait, and Slurm's own timeout for an unresponsive node.
    cluster.until_state(job, "PENDING", timeout_s=120)
    # Outside of tests a requeued job waits two minutes. Here it waits until Slurm has ended the previous start, which
    # would make the next start on that node fail ("Job credential revoked").
    cluster.call("scontrol", "hold", job)
    cluster.network.heal(node)
    cluster.until(lambda: cluster.states() == {"idle"}, "the node is there again", 150, job)
    cluster.until(lambda: not cluster.processes("slurmstepd"), "what was left has ended, the job script too", 150, job)
    time.sleep(3)  # credentials are compared with a resolution of one second
    cluster.call("scontrol", "release", job)
    until_same(cluster, job, workdir, whole)
    assert cluster.log(job).count("start: run folder") == 2
