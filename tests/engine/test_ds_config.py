"""DeepSpeed files: finding, completing and rejecting them."""

import json
from dataclasses import replace

import pytest
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from vitkd_ds.engine.ds_config import bucket_size, find_ds_config, layout, load_ds_config, resolve_auto
from vitkd_ds.engine.student import student_ds_config
from vitkd_ds.recipes import build_run

OWNED = {"train_batch_size": 128, "gradient_clipping": 5.0}


@pytest.fixture
def write(tmp_path):
    """A function that writes a DeepSpeed file and returns its path."""
    path = tmp_path / "ds.json"
    return lambda content: path.write_text(content if isinstance(content, str) else json.dumps(content)) and str(path)


def resolved(zero, **options):
    config = {"zero_optimization": dict(zero)}
    resolve_auto(config, **options)
    return config["zero_optimization"]


@pytest.mark.parametrize("found", ["auto", 128])
def test_auto_or_an_equal_number_becomes_the_recipes_and_the_rest_stays(write, found):
    path = write({"train_batch_size": found, "zero_optimization": {"stage": 2}})
    assert load_ds_config(path, OWNED) == OWNED | {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize("content, message", [
    ({"train_batch_size": 64}, 'sets "train_batch_size" to 64, but the recipe sets it to 128'),
    ({"optimizer": {}}, 'must not set "optimizer".* Use --optim.name, --optim.lr'),
    ({"scheduler": {}}, 'must not set "scheduler"'),
    ({"train_micro_batch_size_per_gpu": 8}, "which has no effect on this engine"),
    ("[]", "must contain a JSON object, got list"),
    ("{", "is not valid JSON"),
])  # fmt: skip
def test_keys_that_do_not_belong_in_a_file_are_rejected_with_file_and_key(write, content, message):
    path = write(content)
    with pytest.raises(ValueError, match=message) as error:
        load_ds_config(path, OWNED)
    assert path in str(error.value)


def test_a_shipped_file_is_found_from_any_folder_and_a_missing_one_rejected_with_the_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_ds_config("ds_configs/zero2.json").name == "zero2.json"
    with pytest.raises(ValueError, match="ds_configs/zero9.json does not exist. Pass .* one of ds_configs/zero2"):
        find_ds_config("ds_configs/zero9.json")


BF16 = {"bf16": {"enabled": True, "check_grad_overflow": False}, "data_types": {"grad_accum_dtype": "fp32"}}
ZERO2 = {"zero_optimization": {"stage": 2, "compute_grad_norm": False}}


@pytest.mark.parametrize("change, message", [
    ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, 'zero_optimization "stage": 2 .* got 1'),
    ({"zero_optimization": {"stage": 2}}, 'zero_optimization "compute_grad_norm": false .* got null'),
    ({"bf16": {"enabled": True}}, 'bf16 "check_grad_overflow": false .* got null'),
    ({"data_types": {}}, 'data_types "grad_accum_dtype": "fp32" .* got null'),
    ({"zero_optimization": ZERO2["zero_optimization"] | {"parameter_alignment": True}}, '"parameter_alignment"'),
    ({"zero_optimization": ZERO2["zero_optimization"] | {"round_robin_gradients": True}}, '"round_robin_gradients"'),
    ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, '"dtype": "bfloat16", got "float16"'),
    ({"gradient_clipping": 4.0}, 'sets "gradient_clipping" to 4.0, but the recipe sets it to 5.0'),
])  # fmt: skip
def test_a_file_whose_stage_norm_or_clipping_differs_from_the_engines_is_rejected(write, change, message):
    run = build_run("demo")
    sizes = {"micro_batch_size": 8, "accumulation_steps": 1}
    for fits in (ZERO2, ZERO2 | BF16):
        config = student_ds_config(replace(run, ds_config=write(fits)), **sizes)
        assert config["gradient_clipping"] == 0 and run.optim.clip_grad_norm == 5
    path = write(ZERO2 | BF16 | change)
    with pytest.raises(ValueError, match=message) as error:
        student_ds_config(replace(run, ds_config=path), **sizes)
    assert path in str(error.value) and (
        "the recipe" in message
        or "Remove it" in str(error.value)
        or "loss scaling" in str(error.value)
        or "as in ds_configs/zero2.json" in str(error.value)
    )


@pytest.mark.parametrize("change, world_size", [
    ({"zero_optimization": {"stage": 1}}, 1), ({"bf16": {}}, 1), ({"data_types": {}}, 1), ({}, 2),
])  # fmt: skip
def test_the_layout_in_a_manifest_differs_with_stage_precision_and_ranks(change, world_size):
    assert layout(ZERO2 | BF16 | change, world_size) != layout(ZERO2 | BF16, 1)


def test_a_bucket_is_deepspeeds_unless_the_file_gives_one():
    assert bucket_size({"zero_optimization": {}}) == DeepSpeedZeroConfig().reduce_bucket_size
    assert bucket_size({"zero_optimization": {"reduce_bucket_size": 3e4}}) == 30_000


@pytest.mark.parametrize("world_size, expected", [(1, (False, 2**62)), (2, (True, 0))])
def test_auto_follows_the_number_of_ranks(world_size, expected):
    keys = ("overlap_comm", "stage3_param_persistence_threshold")
    zero = resolved({"stage": 2, **dict.fromkeys(keys, "auto")}, world_size=world_size)
    assert tuple(zero[key] for key in keys) == expected
    assert resolved({"overlap_comm": True}, world_size=world_size) == {"overlap_comm": True}


def test_communication_does_not_overlap_a_fully_compiled_student_and_auto_elsewhere_is_rejected():
    assert resolved({"overlap_comm": "auto"}, world_size=2, is_compiled=True) == {"overlap_comm": False}
    with pytest.raises(ValueError, match='"stage" must have a value, got "auto"'):
        resolved({"stage": "auto"}, world_size=1)
