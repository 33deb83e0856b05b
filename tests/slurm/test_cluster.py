"""A job script on a real Slurm of two nodes: the demo, end to end (the only cluster of `make test`), and staging."""

import json

import numpy as np
import pytest
from PIL import Image

from vitkd_ds.data.fashion_mnist import CLASSES
from vitkd_ds.data.pack import pack

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2"]


def test_the_demo_trains_on_two_nodes_of_two_ranks(cluster, tmp_path):
    command = ["slurm/vitkd_base.sh", "--recipe", "demo", "--debug", "--workdir", tmp_path / "a run"]
    job = cluster.submit(*TWO_BY_TWO, *command)
    cluster.until_state(job, "COMPLETED", "FAILED", timeout_s=400)
    assert cluster.job(job)["JobState"] == "COMPLETED", cluster.log(job)[-6000:]
    summary = json.loads((tmp_path / "a run" / "summary.json").read_text())
    assert summary["world_size"] == 4 and summary["teacher_top1"] > 50
    assert "command: train.py" in cluster.log(job).splitlines()[0] and "node[1-2], 4 ranks" in cluster.log(job)
    again = cluster.submit(*TWO_BY_TWO, *command)
    cluster.until_state(again, "COMPLETED", "FAILED", timeout_s=60)
    assert "finished before" in cluster.log(again) and cluster.job(again)["ExitCode"] == "0:0"
    refused = cluster.submit(*TWO_BY_TWO, *command, "--workdri=x")
    cluster.until_state(refused, "COMPLETED", "FAILED", timeout_s=60)
    assert "did you mean workdir" in cluster.log(refused) and cluster.job(refused)["Restarts"] == "0"


@pytest.mark.slow
def test_each_node_trains_from_a_copy_on_its_own_disk(cluster, tmp_path):
    pixels = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8))
            image.save(tmp_path / "images" / name / f"{i}.png")
    beton = tmp_path / "small.beton"
    pack(tmp_path / "images", beton, write_mode="raw", max_resolution=0)
    options = ["--recipe=demo", "--debug", "--max_steps=1", f"--data.train={beton}", f"--workdir={tmp_path}/run"]
    job = cluster.submit(*TWO_BY_TWO, f"--export=ALL,STAGE_DIR={cluster.scratch}", "slurm/vitkd_base.sh", *options)
    cluster.until_state(job, "COMPLETED", "FAILED", timeout_s=400)
    assert "staged on every node: --data.train=" in cluster.log(job), cluster.log(job)[-6000:]
    assert cluster.job(job)["JobState"] == "COMPLETED", cluster.log(job)[-6000:]
    for node in cluster.nodes:
        (copy,) = cluster.disk(node).rglob("*.beton")
        assert copy.read_bytes() == beton.read_bytes() and copy.with_name("small.beton.json").exists()
    used = json.loads((tmp_path / "run" / "config.json").read_text())["run"]["data"]["train"]
    assert used.startswith(str(cluster.scratch)) and not any(cluster.scratch.iterdir()), "a disk of the nodes alone"
