"""The real DeepSpeed on two processes: what worker.py observed, held against what must be so."""

import json
from pathlib import Path

import pytest

from tests.conftest import finish_ranks, start_ranks

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Observations of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    finish_ranks(start_ranks(2, WORKER, folder))
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def seen_alone(tmp_path_factory):
    """Observations of one rank."""
    folder = tmp_path_factory.mktemp("one")
    finish_ranks(start_ranks(1, WORKER, folder))
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("placement", ["shard", "offload"])
def test_each_rank_holds_half_of_the_teacher_after_a_forward(seen, placement):
    assert seen[f"{placement} live"] == 0, "whole parameters were kept"
    padding = seen[f"{placement} padding"]  # at most one element a parameter
    assert seen["all"] <= 2 * seen[f"{placement} held"] <= seen["all"] + 2 * padding


@pytest.mark.parametrize("placement", ["shard", "offload", "replica"])
def test_the_teacher_is_frozen_and_stays_in_eval_mode_whatever_is_called(seen, placement):
    assert seen[f"{placement} equal"] == [True, True, True], "features differ from the plain bf16 model's"
    assert seen[f"{placement} equal after train()"]
    assert not seen[f"{placement} requires_grad"] and not seen[f"{placement} output grad"]


def test_the_teacher_engine_leaves_torchs_linear_alone(seen):
    assert seen["linear is torch's own"]


def test_all_placements_give_the_same_loss(seen):
    assert seen["shard total"] == seen["offload total"] == pytest.approx(seen["replica total"], rel=2**-8)


def test_terms_are_fp32_and_the_total_is_their_sum(seen):
    assert seen["term dtypes"] == ["torch.float32"]
    assert seen["total is the sum"] < 1e-5


@pytest.mark.parametrize("other", ["fp32 4x2", "fp32 2x4", "fp32 plain torch"])
def test_ranks_accumulation_and_deepspeed_change_losses_and_norms_by_rounding_only(seen, other):
    for found, expected in zip(seen[other], seen["fp32 8x1"]):
        assert found == pytest.approx(expected, rel=1e-5)


def test_two_ranks_train_as_one(seen, seen_alone):
    for found, expected in zip(seen["fp32 8x1"], seen_alone["fp32 8x1"]):
        assert found == pytest.approx(expected, rel=1e-5)
    for found, expected in zip(seen["bf16"], seen_alone["bf16"]):
        assert found == pytest.approx(expected, rel=2e-2)


def test_bf16_follows_fp32(seen):
    assert seen["bf16"][0] == pytest.approx(seen["fp32 8x1"][0], rel=1e-2)


def test_master_weights_start_in_fp32(seen):
    assert seen["bf16 engine starts in fp32"]


def test_the_sharded_average_is_the_slow_one_and_reading_it_changes_nothing(seen):
    assert seen["average error"] < 1e-6
    assert seen["average differs from raw"] and seen["raw weights untouched"]


def test_a_restored_engine_has_the_same_weights_average_and_future(seen):
    assert seen["restored average=True"] and seen["restored average=False"]
    assert seen["continued"] == seen["uninterrupted"]


def test_the_exported_weights_give_the_trained_engines_logits(seen):
    assert seen["exported logits"]


def test_a_checkpoint_holds_student_and_losses_and_no_teacher(seen):
    assert seen["saved parts"] == ["student", "vitkd"]
    assert len(seen["checkpoint files"]) == 3
