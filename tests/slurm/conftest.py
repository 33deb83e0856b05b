"""Two virtual nodes for each module of tests that wants them."""

import pytest

from tests.slurm.cluster import running_cluster
from tests.slurm.runs import submit, until_finished


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, demo_cache):
    with running_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory):
    """Folder of a run without any interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    until_finished(cluster, submit(cluster, workdir), workdir)
    return workdir
