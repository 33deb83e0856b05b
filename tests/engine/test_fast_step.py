"""The fast settings change no number: what fast_step.py observed on one rank and on two."""

import json
from pathlib import Path

import pytest

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("fast_step.py")


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def seen(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    finish_ranks(start_ranks(request.param, WORKER, folder))
    return json.loads((folder / "seen.json").read_text()) | {"ranks": request.param}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_norms_and_weights_are_deepspeeds_own_bit_for_bit(seen, precision, accumulation):
    ours, deepspeed = (seen[f"{precision} {who} {accumulation}"] for who in ("ours", "deepspeed"))
    assert ours == deepspeed
    assert max(ours[1]) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("precision", ["bf16", "fp32", "fused"])
def test_an_update_that_is_nan_on_one_rank_is_left_out_on_all_and_training_can_go_on(seen, precision):
    ranks = seen["ranks"]
    assert seen[f"{precision} updates applied, sum over ranks"] == [ranks, 0, ranks]
    assert seen[f"{precision} norms finite"] == [True, False, True]
    assert seen[f"{precision} weights moved"] == [True, False, True] and seen[f"{precision} weights finite"]


def test_activation_checkpointing_changes_nothing(seen):
    assert seen["checkpointed True"] == seen["checkpointed False"]


def test_a_shard_of_one_rank_is_kept_whole_and_of_two_is_not(seen):
    assert seen["live part"] == (1 if seen["ranks"] == 1 else 0)
    assert seen["shard equals replica"]


def test_a_block_of_a_sharded_teacher_is_one_unit_to_deepspeeds_hooks(seen):
    assert seen["leaf modules"] == [True, True, True]
