"""What `vitkd-ds plan` takes for the memory of a sharded teacher, against DeepSpeed itself."""

import json

import pytest

from tests.conftest import ROOT, finish_ranks, start_ranks
from vitkd_ds.commands.plan.inputs import FETCHES


def gathered(prefetch, live):
    script = ROOT / "tests" / "engine" / "gathered_ahead.py"
    output = finish_ranks(start_ranks(2, script, prefetch, live))[0]
    return json.loads(next(line for line in output.splitlines() if line.startswith("{")))


@pytest.mark.slow
def test_each_module_up_to_the_first_block_gathers_another_bucket_ahead():
    found = gathered(prefetch=3, live=1000)
    # Whole tensors, so each time up to one more than the bucket; what comes before the blocks is released again.
    planned = FETCHES * 3 * found["block"]
    assert planned - found["embedding"] <= found["gathered"] < planned + FETCHES * found["largest"]


@pytest.mark.slow
def test_a_limit_on_live_parameters_is_kept():
    found = gathered(prefetch=3, live=2)
    assert found["block"] <= found["gathered"] <= 2 * found["block"] + found["largest"]
