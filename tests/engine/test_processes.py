"""A rank's knowledge of itself from its launcher's variables, and of failures on other ranks."""

import logging
import os
import sys
import tempfile
from types import SimpleNamespace

import pytest
from deepspeed.accelerator import cuda_accelerator, real_accelerator
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from deepspeed.utils import logger

from tests.conftest import finish_ranks, free_port, start_ranks
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.processes import (
    check_code_folders,
    check_gpu_is_used,
    choose_device,
    local_world_size,
    num_cpus,
    set_rank_variables,
    start_processes,
)

SLURM = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12001"}
SLURM |= {"SLURM_NTASKS": "1"}  # the job's value, under `srun --preserve-env`


def test_deepspeed_does_not_print_that_it_computes_on_the_cpu(monkeypatch, capfd):
    monkeypatch.setattr(real_accelerator, "ds_accelerator", None)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    handler = next(handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler))
    monkeypatch.setattr(handler, "stream", sys.stdout)
    logger.warning("another warning")
    assert real_accelerator.get_accelerator().device_name() == "cpu"
    said = capfd.readouterr()
    assert "another warning" in said.out and "Setting accelerator" not in said.out + said.err


def test_a_process_without_a_launcher_is_one_rank_with_its_own_port():
    script, one_task = {"SLURM_NTASKS_PER_NODE": "4"}, {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
    for environ in ({}, SLURM | script, SLURM | one_task | {"SLURM_STEP_NODELIST": "n1"}):
        set_rank_variables(environ)
        assert environ["MASTER_ADDR"] == "127.0.0.1"
        assert environ["WORLD_SIZE"] == "1" and int(environ["MASTER_PORT"]) > 0 and local_world_size(environ) == 1


def test_slurms_variables_become_ranks_and_plain_srun_gives_the_first_nodes_address(tmp_path, monkeypatch):
    environ = SLURM | {"SLURM_STEP_ID": "0", "MASTER_ADDR": "n1"}
    set_rank_variables(environ)
    assert (environ["RANK"], environ["LOCAL_RANK"], environ["WORLD_SIZE"]) == ("3", "1", "4")
    assert environ["MASTER_PORT"] == "20001" and environ["MASTER_ADDR"] == "n1"
    environ = SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "1"}
    set_rank_variables(environ)
    assert environ["MASTER_ADDR"] == "127.0.0.1", "on one node"
    environ = SLURM | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[1-2]"}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="MASTER_ADDR is not set, and scontrol cannot determine the first node"):
        set_rank_variables(dict(environ))
    (tmp_path / "scontrol").write_text(
        "#!/bin/sh\n[ $2 = hostnames ] && echo n1 && echo n2 || echo NodeName=$3 NodeAddr=10.0.0.1 Port=6818\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    set_rank_variables(environ)
    assert environ["MASTER_ADDR"] == "10.0.0.1"


def test_a_rank_without_a_world_is_rejected():
    missing = "LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"
    with pytest.raises(ValueError, match=f"RANK is set without {missing}"):
        set_rank_variables({"RANK": "0"})


@pytest.mark.parametrize("environ, expected", [
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, 2),
    ({"LOCAL_SIZE": "8", "WORLD_SIZE": "16"}, 8),
    ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "1", "WORLD_SIZE": "11"}, 4),
    ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "2", "WORLD_SIZE": "11"}, 3),
    ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0", "WORLD_SIZE": "1"}, 1),
    ({"WORLD_SIZE": "3"}, 3),
])  # fmt: skip
def test_the_number_of_local_ranks_comes_from_any_launcher(environ, expected):
    assert local_world_size(environ) == expected


@pytest.mark.parametrize("environ, expected", [
    ({}, 8), ({"LOCAL_WORLD_SIZE": "4"}, 2), ({"LOCAL_WORLD_SIZE": "16"}, 1),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "8"}, 8),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "2"}, 2),
    ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_PER_TASK": "8"}, 2),
])  # fmt: skip
def test_a_rank_uses_its_slurm_tasks_cpus_or_a_share_of_the_available_ones(monkeypatch, environ, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert num_cpus(environ) == expected


def test_local_rank_is_the_device_number():
    environ = {"LOCAL_RANK": "1"}
    choose_device(2, environ)
    assert environ["LOCAL_RANK"] == "1"
    alone = environ | {"SLURM_GPUS_PER_TASK": "1"}
    choose_device(1, alone)
    assert alone["LOCAL_RANK"] == "0"
    with pytest.raises(ValueError, match="below the number of visible GPUs, got 1 and 1 .* Start one rank per GPU"):
        choose_device(1, environ)


@pytest.mark.parametrize("visible", ["MIG-a5f0c1de-8b1f-5e0c-b1a4-000000000000", "GPU-5", "0,1"])
def test_deepspeed_learns_the_free_memory_of_devices_that_are_named_by_uuid(monkeypatch, visible):
    """DeepSpeed's own accelerator, up to the first call that needs a GPU."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    accelerator = CUDA_Accelerator()
    monkeypatch.setattr(cuda_accelerator, "pynvml", SimpleNamespace())
    monkeypatch.setattr(processes, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(processes, "choose_device", lambda number: None)
    monkeypatch.setattr(accelerator, "set_device", lambda number: (_ for _ in ()).throw(RuntimeError("no GPU")))
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (3 * 2**30, 8 * 2**30))
    with pytest.raises(RuntimeError, match="no GPU"):
        start_processes()
    assert accelerator.available_memory() == 3 * 2**30


def test_a_gpu_that_torch_cannot_use_is_rejected_unless_the_cpu_is_asked_for(tmp_path):
    driver = tmp_path / "version"
    check_gpu_is_used({}, driver)
    with pytest.raises(ValueError, match="SLURM_JOB_GPUS=0,1.* set DS_ACCELERATOR=cpu"):
        check_gpu_is_used({"SLURM_JOB_GPUS": "0,1"}, driver)
    driver.touch()
    with pytest.raises(ValueError, match=f"{driver} exists.*, but torch finds none"):
        check_gpu_is_used({}, driver)
    check_gpu_is_used({"DS_ACCELERATOR": "cpu"}, driver)


def test_a_failure_on_one_rank_is_known_on_all(observed):
    together = [
        ["RefusedElsewhere: rank 1: ValueError: no file", "FailedElsewhere: rank 1: OSError: gone"],
        ["ValueError: no file", "OSError: gone"],
    ]
    for rank, told in enumerate(observed[2]["agreement"]):
        assert told["all"] == [rank, 5, []] and told["together"] == together[rank]
        assert told["failures"] == ["rank 1: OSError: disk full"]
        assert told["main"] == ["KeyError: 'x'", 0] and told["ran"] == [0][rank:], "nothing runs on rank 1"
        assert told["flags"] == [False, False] and told["true"]


def test_without_a_process_group_there_is_one_rank():
    def fail():
        raise ValueError("no")

    assert (ranks.rank(), ranks.world_size(), ranks.from_all(3)) == (0, 1, [3])
    assert ranks.together(lambda: 7) == ranks.on_main(lambda: 7) == 7
    assert ranks.failures(fail) == ["rank 0: ValueError: no"]
    for agree in (ranks.together, ranks.on_main):
        with pytest.raises(ValueError, match="no"):
            agree(fail)


def test_no_rank_starts_if_its_folder_of_compiled_code_is_not_private(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_code_folders({})
    (cache,) = tmp_path.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700, "inductor's default"
    cache.rmdir()
    cache.symlink_to(tmp_path)
    for name, text in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, text)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    with pytest.raises(ValueError, match="cannot hold compiled code: .* Remove it"):
        start_processes(0.01)


def test_folders_of_compiled_code_are_private_or_rejected(tmp_path):
    for name in ("TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        both = {"TORCH_EXTENSIONS_DIR": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "good")}
        folder = tmp_path / name / "new"
        check_code_folders(both | {name: str(folder)})
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o777)
        with pytest.raises(ValueError, match=f"from .*new, but other users .*owner {os.getuid()}, mode"):
            check_code_folders(both | {name: str(folder)})
        folder.chmod(0o700)
        folder.parent.chmod(0o777)
        with pytest.raises(ValueError, match="from .*new, but .* or replace it"):
            check_code_folders(both | {name: str(folder)})
        folder.parent.chmod(0o1777)
        check_code_folders(both | {name: str(folder)})
        (tmp_path / f"link {name}").symlink_to(tmp_path)
        with pytest.raises(ValueError, match="cannot hold compiled code: .* Remove it"):
            check_code_folders(both | {name: str(tmp_path / f"link {name}")})
    if os.getuid() == 0:
        os.chown(tmp_path / "good", 65534, 65534)
        with pytest.raises(ValueError, match="owner 65534"):
            check_code_folders(both)


LISTENING = """
import os
from vitkd_ds.engine import processes, ranks
processes.start_processes(1)
assert ranks.from_all(ranks.rank()) == [0, 1]
links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
own = {os.readlink(link)[8:-1] for link in links if os.path.lexists(link) and os.readlink(link).startswith("socket:[")}
for family in ("tcp", "tcp6"):
    for words in map(str.split, open(f"/proc/net/{family}").readlines()[1:]):
        if words[3] == "0A" and words[9] in own:
            print("listens", words[1])
processes.leave()
"""


def test_ranks_on_a_single_node_listen_only_on_loopback():
    for said in finish_ranks(start_ranks(2, "-c", LISTENING)):
        listens = [line.split()[1] for line in said.splitlines() if line.startswith("listens")]
        assert listens and all(address.startswith("0100007F:") for address in listens), said
