"""DeepSpeed files: found, completed, refused; and the rank variables of each launcher."""

import json
from dataclasses import replace

import pytest

from vitkd_ds.engine.ds_config import computes_norm, find_ds_config, load_ds_config, resolve_auto
from vitkd_ds.engine.ranks import local_world_size, set_rank_variables
from vitkd_ds.engine.student import student_ds_config
from vitkd_ds.recipes import build_run

OWNED = {"train_batch_size": 128, "gradient_clipping": 5.0}


def write(folder, content):
    path = folder / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_auto_becomes_the_recipes_number_and_the_rest_stays(tmp_path):
    path = write(tmp_path, {"train_batch_size": "auto", "zero_optimization": {"stage": 2}})
    assert load_ds_config(path, OWNED) == OWNED | {"zero_optimization": {"stage": 2}}


def test_the_same_number_in_both_is_no_error(tmp_path):
    assert load_ds_config(write(tmp_path, {"train_batch_size": 128}), OWNED) == OWNED


@pytest.mark.parametrize("content, message", [
    ({"train_batch_size": 64}, 'sets "train_batch_size" to 64, the recipe to 128'),
    ({"optimizer": {}}, 'must not set "optimizer", which the recipe owns: use --optim.lr'),
    ({"scheduler": {}}, 'must not set "scheduler"'),
    ({"train_micro_batch_size_per_gpu": 8}, "which has no meaning for this engine"),
    ("[]", "must hold a JSON object, found list"),
    ("{", "must be JSON"),
])  # fmt: skip
def test_what_does_not_belong_in_a_file_is_refused_with_file_and_key(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message) as error:
        load_ds_config(path, OWNED)
    assert path in str(error.value)


def test_a_missing_file_is_refused_with_the_names_that_exist():
    with pytest.raises(
        ValueError, match="found no file ds_configs/zero9.json: give a path or one of ds_configs/zero2.json"
    ):
        find_ds_config("ds_configs/zero9.json")


def test_the_shipped_file_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_ds_config("ds_configs/zero2.json").name == "zero2.json"


def test_plain_python_becomes_one_rank_with_a_port_of_its_own():
    environ = {}
    set_rank_variables(environ)
    assert environ["WORLD_SIZE"] == "1" and int(environ["MASTER_PORT"]) > 0


def test_slurms_variables_become_ranks():
    environ = {
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_ID": "12001",
        "MASTER_ADDR": "n1",
    }
    set_rank_variables(environ)
    assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"]) == ("3", "1", "4")
    assert environ["MASTER_PORT"] == "20001"


def test_under_srun_alone_the_first_nodes_address_is_slurms_own(tmp_path, monkeypatch):
    environ = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
    environ |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="under srun MASTER_ADDR must be set where scontrol cannot tell"):
        set_rank_variables(dict(environ))
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n[ $2 = hostnames ] && echo n1 && echo n2 || echo NodeName=$3 NodeAddr=10.0.0.1 Port=6818\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    set_rank_variables(environ)
    assert environ["MASTER_ADDR"] == "10.0.0.1"


def test_a_process_that_srun_did_not_start_is_one_rank_of_its_own():
    environ = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "4"}
    set_rank_variables(environ)
    assert environ["WORLD_SIZE"] == "1" and local_world_size(environ) == 1


def test_a_rank_without_a_world_is_refused():
    with pytest.raises(
        ValueError, match="RANK is set, so LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT must be set too"
    ):
        set_rank_variables({"RANK": "0"})


def test_the_ranks_of_this_node_come_from_whichever_launcher_says_so():
    assert local_world_size({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}) == 2
    assert local_world_size({"LOCAL_SIZE": "8", "WORLD_SIZE": "16"}) == 8
    tasks = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "WORLD_SIZE": "11"}
    assert [local_world_size(tasks | {"SLURM_NODEID": node}) for node in "012"] == [4, 4, 3]
    assert local_world_size({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0", "WORLD_SIZE": "1"}) == 1
    assert local_world_size({"WORLD_SIZE": "3"}) == 3


BF16 = {"bf16": {"enabled": True, "check_grad_overflow": False}, "data_types": {"grad_accum_dtype": "fp32"}}


def test_the_norm_is_left_to_us_only_where_that_is_safe():
    assert computes_norm({"zero_optimization": {"stage": 2}})
    assert not computes_norm(BF16 | {"zero_optimization": {"compute_grad_norm": False}})
    assert not computes_norm({"zero_optimization": {"compute_grad_norm": False}})
    with pytest.raises(ValueError, match="DeepSpeed would apply updates that are inf or nan, so set both or neither"):
        computes_norm(BF16 | {"zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match='"grad_accum_dtype": "fp32" with "compute_grad_norm": false, found None'):
        computes_norm({"bf16": {"enabled": True}, "zero_optimization": {"compute_grad_norm": False}})


@pytest.mark.parametrize("world_size, expected", [(1, (False, 2**62)), (2, (True, 0))])
def test_auto_follows_the_number_of_ranks(world_size, expected):
    keys = ("overlap_comm", "stage3_param_persistence_threshold")
    config = {"zero_optimization": {"stage": 2, **dict.fromkeys(keys, "auto")}}
    resolve_auto(config, world_size=world_size)
    assert tuple(config["zero_optimization"][key] for key in keys) == expected
    config = {"zero_optimization": {"overlap_comm": True}}
    resolve_auto(config, world_size=world_size)
    assert config == {"zero_optimization": {"overlap_comm": True}}


def test_communication_overlaps_nothing_where_the_student_is_compiled_as_a_whole():
    config = {"zero_optimization": {"overlap_comm": "auto"}}
    resolve_auto(config, world_size=2, is_compiled=True)
    assert config == {"zero_optimization": {"overlap_comm": False}}


def test_auto_elsewhere_is_refused():
    with pytest.raises(ValueError, match='must give a value for "stage", found "auto"'):
        resolve_auto({"zero_optimization": {"stage": "auto"}}, world_size=1)


def test_the_recipe_clips_also_where_deepspeed_does_not(tmp_path):
    run = build_run("demo")
    path = write(tmp_path, {"gradient_clipping": 4.0, "zero_optimization": {"stage": 2, "compute_grad_norm": False}})
    with pytest.raises(ValueError, match='sets "gradient_clipping" to 4.0, the recipe to 5.0'):
        student_ds_config(replace(run, ds_config=path), micro_batch_size=8, accumulation_steps=1)
    config = student_ds_config(run, micro_batch_size=8, accumulation_steps=1)
    assert config["gradient_clipping"] == 0 and run.optim.clip_grad_norm == 5
    own = write(tmp_path, {"gradient_clipping": "auto", "zero_optimization": {"stage": 2}})
    config = student_ds_config(replace(run, ds_config=own), micro_batch_size=8, accumulation_steps=1)
    assert config["gradient_clipping"] == 5
