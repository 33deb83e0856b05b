"""Two virtual nodes for each module of tests that wants them."""

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, demo_cache):
    """A running Slurm of two nodes."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"), num_nodes=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
