"""A problem on a single node ends all ranks soon, with the exit code of a rejected run."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import finish_ranks, start_ranks, wait_until
from tests.tiers import costly
from vitkd_ds.config.run_folder import STUDENT

TRAIN = "import os; os.chdir(os.environ['RANK']); from vitkd_ds.cli import train_main; train_main()"
"""Each rank in a separate folder that stands for its node's disk."""


@pytest.fixture
def nodes(tmp_path, small_beton):
    """Folders 0 and 1, each with the same images."""
    for rank in "01":
        (tmp_path / rank).mkdir()
        for suffix in ("", ".json"):
            shutil.copy(f"{small_beton}{suffix}", tmp_path / rank / f"x.beton{suffix}")
    return tmp_path


def start(nodes, *options):
    command = ["--recipe=demo_plain", "--debug", "--data.train=x.beton", f"--workdir={nodes}/run", *options]
    return start_ranks(2, "-c", TRAIN, *command, cwd=nodes)


@pytest.mark.parametrize("kind", ["images", *costly(["weights"])])
def test_if_one_node_lacks_something_all_ranks_exit_with_the_error(nodes, demo_cache, kind):
    options = []
    if kind == "images":
        os.truncate(nodes / "1" / "x.beton", 9000)
    else:
        for rank in "01":
            save_file({"weight": torch.zeros(2)}, nodes / rank / "w.safetensors")
        options = ["--student.init=w.safetensors"]
        (nodes / "1" / "w.safetensors").write_bytes(b"cut")
    said = finish_ranks(start(nodes, *options), codes=[2, 2])
    assert not any("Traceback" in text for text in said)
    assert "error: " in said[0] and "error: " in said[1]
    if kind == "images":
        assert "rank 1: ValueError: 'x.beton' must " in said[0] and "error: 'x.beton' must " in said[1]
    assert not (nodes / "run" / "checkpoints").exists() and not (nodes / "run" / STUDENT).exists()


@pytest.mark.cold
@pytest.mark.slow
def test_term_after_a_peers_early_rejection_keeps_the_rejections_exit_code(nodes, demo_cache):
    (nodes / "1" / "x.beton").unlink()
    processes = start(nodes, "--data.num_classes=0")
    refused = processes[1].communicate(timeout=60)[0]
    assert processes[1].returncode == 2 and "error: 'x.beton' must be a .beton file" in refused
    # As srun does; it takes the larger of the two codes, which must be the rejected run's.
    wait_until(lambda: "libtorch" in Path(f"/proc/{processes[0].pid}/maps").read_text(), [processes[0]])
    processes[0].send_signal(signal.SIGTERM)
    said = processes[0].communicate(timeout=60)[0]
    assert processes[0].returncode == 0 and "asked to stop before training started: exiting" in said
