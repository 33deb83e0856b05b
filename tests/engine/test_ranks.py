"""What a rank knows of itself from its environment."""

import os

import pytest

from vitkd_ds.engine import ranks


@pytest.mark.parametrize("environ, expected", [
    ({}, 8),
    ({"LOCAL_WORLD_SIZE": "4"}, 2),
    ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "8"}, 8),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "2"}, 2),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "8"}, 2),
])  # fmt: skip
def test_a_rank_takes_what_slurm_gave_its_task_or_shares_the_cpus_it_may_use(monkeypatch, environ, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert ranks.num_cpus(environ) == expected


def test_local_rank_is_the_number_of_the_ranks_device():
    environ = {"LOCAL_RANK": "1"}
    ranks.choose_device(2, environ)
    assert environ["LOCAL_RANK"] == "1"
    alone = environ | {"SLURM_GPUS_PER_TASK": "1"}
    ranks.choose_device(1, alone)
    assert alone["LOCAL_RANK"] == "0"
    with pytest.raises(ValueError, match="below the number of visible GPUs, found 1 and 1 .*: start as many ranks"):
        ranks.choose_device(1, environ)
