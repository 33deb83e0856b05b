"""What `vitkd-ds plan` takes for the memory of a sharded teacher, against DeepSpeed itself."""

import json
from pathlib import Path

import pytest

from tests.conftest import finish_ranks, start_ranks
from vitkd_ds.commands.plan.inputs import FETCHES


@pytest.mark.slow
def test_each_module_up_to_the_first_block_gathers_another_bucket_ahead_and_live_parameters_have_a_limit():
    output = finish_ranks(start_ranks(2, Path(__file__).with_name("gathered_ahead.py"), "3,1000", "3,2"))[0]
    found, limited = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
    # Whole tensors, so each time up to one more than the bucket; what comes before the blocks is released again.
    planned = FETCHES * 3 * found["block"]
    assert planned - found["embedding"] <= found["gathered"] < planned + FETCHES * found["largest"]
    assert limited["block"] <= limited["gathered"] <= 2 * limited["block"] + limited["largest"]
