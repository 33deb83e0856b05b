"""The real DeepSpeed in one process and in two: values recorded by observe.py against their expectations."""

import pytest

from vitkd_ds.commands.plan.inputs import FETCHES


@pytest.fixture
def two(observed):
    return observed[2]


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def each(request, observed):
    return observed[request.param] | {"ranks": request.param}


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_norms_and_weights_equal_deepspeeds_own_bit_for_bit(each, precision, accumulation):
    ours, deepspeed = (each[f"{precision} {who} {accumulation}"] for who in ("ours", "deepspeed"))
    assert ours == deepspeed
    assert max(ours[1]) > 0.5, "nothing was clipped"


@pytest.mark.parametrize("other", ["fp32 ours 4", "fp32 plain torch"])
def test_ranks_accumulation_and_deepspeed_change_losses_and_norms_by_rounding_only(each, other):
    for found, expected in zip(each[other][:2], each["fp32 ours 1"]):
        assert found == pytest.approx(expected, rel=1e-5)


def test_with_autocast_weights_stay_in_fp32_and_updates_match_torchs_autocast(each):
    for found, expected in zip(each["autocast ours"], each["autocast plain torch"]):
        # Torch's clipping norm differs in the last bit, and each rank rounds its gradients before they are added.
        assert found == pytest.approx(expected, rel=1e-4 if each["ranks"] == 1 else 5e-3)
    assert each["autocast dtypes"] == ["torch.float32"]
    assert each["autocast ours"][0] != pytest.approx(each["fp32 ours 1"][0], rel=1e-5), "nothing was computed in bf16"


@pytest.mark.parametrize("precision, rel", [("fp32", 1e-5), ("bf16", 2e-2)])
def test_two_ranks_train_like_one(observed, precision, rel):
    for found, expected in zip(*(observed[ranks][f"{precision} ours 1"][:2] for ranks in (2, 1))):
        assert found == pytest.approx(expected, rel=rel)


def test_bf16_follows_fp32_and_starts_from_fp32_weights(each):
    assert each["bf16 ours 1"][0] == pytest.approx(each["fp32 ours 1"][0], rel=1e-2)
    assert each["bf16 starts in fp32"]


@pytest.mark.parametrize("name", ["bf16", "fp32", "fused"])
def test_a_nan_update_on_one_rank_is_skipped_on_all_with_those_queued_after_it(each, name):
    assert each[f"{name} updates applied, on each rank"] == [[True, False, False]] * each["ranks"]
    assert each[f"{name} norms finite"] == [True, False, False]
    assert each[f"{name} weights moved"] == [True, False, False] and each[f"{name} weights finite"]


@pytest.mark.parametrize("precision, rel", [("fp32", 1e-4), ("bf16", 2e-2)])
def test_terms_that_gather_make_two_ranks_train_like_one(observed, precision, rel):
    for found, expected in zip(*(observed[ranks][f"{precision} other terms"] for ranks in (2, 1))):
        assert found == pytest.approx(expected, rel=rel)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_buffers_of_terms_are_the_same_on_all_ranks_keep_their_precision_and_are_in_the_checkpoint(each, precision):
    buffers = each[f"{precision} buffers"]
    assert len(buffers) == each["ranks"] and all(one == buffers[0] for one in buffers)
    assert each[f"{precision} restored"] and each[f"{precision} others continue"]
    kept = each[f"{precision} kept"]
    exact = [name for name in kept if "mean_D" in name or "transform_DD" in name or "w_T" in name]
    assert len(exact) == 5 and {kept[name] for name in exact} == {"torch.float32"}
    assert kept["relation.num_seen"] == "torch.int64"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_projector_trains_and_stays_orthogonal_under_zero_and_flat_parameters(each, precision):
    assert each[f"{precision} orthogonal"] < 1e-5 and each[f"{precision} moved"]


def test_any_number_of_flat_parameters_changes_no_bit(each):
    for name in ("few", "many", "overlap"):
        assert each[f"flat {name}"] == each["flat deepspeed"]
    few, many = each["flat sizes few"], each["flat sizes many"]
    assert few == each["flat sizes overlap"] and len(few) == 2 and len(many) > 5 and sum(few) == sum(many)
    assert max(many) > 3000, "one weight must be longer than a bucket"


def test_activation_checkpointing_changes_nothing(each):
    assert each["checkpointed True"] == each["checkpointed False"]


@pytest.mark.parametrize("placement", ["shard", "offload"])
def test_after_a_forward_each_of_two_ranks_holds_half_of_the_teacher_and_a_single_rank_all(observed, two, placement):
    assert two[f"{placement} live"] == 0, "full parameters were kept"
    padding = two[f"{placement} padding"]  # at most one element per parameter
    assert two["all"] <= 2 * two[f"{placement} held"] <= two["all"] + 2 * padding
    assert observed[1]["shard live"] == observed[1]["all"]


def test_a_host_that_is_ahead_keeps_two_blocks_on_the_device_and_of_a_shard_more_if_they_fit(observed):
    for ranks, room, expected in (
        (1, "offload, 100", [1, 2, 2, 2, 2, 2]), (2, "offload, 100", [1, 2, 2, 2, 2, 2]),
        (2, "shard, 0.9", [1, 2, 2, 2, 2, 2]), (2, "shard, 1", [1, 2, 3, 3, 3, 3]),
        (1, "shard, 0.9", [1] * 6),  # which is kept, and never waited for
    ):  # fmt: skip
        found = observed[ranks][f"pace of {room} more"]
        assert found["in flight"] == expected, (ranks, room)
        assert found["freed"] == [True] * (6 if len(set(expected)) > 1 else 0), "only released memory is waited for"


def test_a_partitioned_teacher_is_never_whole_on_the_device(each):
    assert each["replica moves"] == [True], "a replica is"
    assert each["shard moves"] == each["offload moves"] == each["offload without blocks moves"] == []
    assert each["offload without blocks equal"]


@pytest.mark.parametrize("name", ["resumed", "new"])
def test_with_cuda_graphs_the_student_never_frees_the_teachers_features(each, name):
    found = each[f"graphs of a {name} run free"]
    assert [call for call, _ in found] == 2 * ["teacher", "student"], "one graph per call"
    assert [is_freeing for call, is_freeing in found if call == "student"] == [False, False]
    assert found[2] == ["teacher", True], "the next micro-batch frees the results of this one"


@pytest.mark.parametrize("placement", ["shard", "offload", "replica"])
def test_the_teacher_is_frozen_and_always_in_eval_mode(each, placement):
    assert each[f"{placement} equal"] == [True] * 7, "features differ from the plain bf16 model's"
    assert each[f"{placement} equal after train()"]
    assert not each[f"{placement} requires_grad"]


def test_a_block_of_a_sharded_teacher_is_one_unit_and_torchs_linear_is_left_alone(each):
    assert each["leaf modules"] == [True, True, True] and each["linear is torch's own"]


def test_modules_before_the_first_block_gather_ahead_and_live_parameters_have_a_limit(two):
    found, limited = two["gathered ahead"]
    # Counted as by `vitkd-ds plan`: whole tensors, so up to one above the bucket. The embedding is released first.
    planned = FETCHES * 3 * found["block"]
    assert planned - found["embedding"] <= found["gathered"] < planned + FETCHES * found["largest"]
    assert limited["block"] <= limited["gathered"] <= 2 * limited["block"] + limited["largest"]


def test_all_placements_give_the_same_loss_an_fp32_sum_of_terms(each):
    assert each["shard total"] == each["offload total"] == pytest.approx(each["replica total"], rel=2**-8)
    assert each["term dtypes"] == ["torch.float32"] and each["total is the sum"] < 1e-5


def test_the_average_on_two_ranks_matches_a_slow_one_and_reading_it_changes_nothing(two):
    assert two["average error"] < 1e-6
    assert two["average differs from raw"] and two["raw weights untouched"]


def test_a_checkpoint_holds_only_student_and_losses_and_restores_weights_average_and_training(two):
    assert two["saved parts"] == ["student", "vitkd"] and len(two["checkpoint files"]) == 3
    assert two["restored average=True"] and two["restored average=False"]
    assert two["continued"] == two["uninterrupted"]


def test_checkpoints_are_interchangeable_with_deepspeeds_without_flat_parameters(two):
    assert two["continued by DeepSpeed's own"] == two["uninterrupted"]
    assert two["back from DeepSpeed's own"] == two["uninterrupted"][2]
    settings = {"/ds_config", "/optimizer_state_dict/clip_grad"}
    for files in two["files as DeepSpeed's own"]:
        assert files and all(set(found) <= settings for found in files.values()), files


def test_the_exported_weights_give_the_same_logits_as_the_trained_engine(each):
    assert each["exported logits"]
