"""`vitkd-ds doctor`: real processes on sound and broken runs, and checks that need no process."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.checkpoint.test_folder import finish
from tests.conftest import ROOT, finish_ranks, run_command, start_ranks
from tests.data.conftest import write_images
from vitkd_ds.checkpoint.lock import RunLock
from vitkd_ds.commands.doctor import data, folder, machine, models, rows
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.beton.format import read_beton
from vitkd_ds.models.build import DEMO_TEACHER
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import split_batch

CPU = torch.device("cpu")
PREAMBLE = """
import os
rank = os.environ["RANK"]
os.environ["SLURMD_NODENAME"] = "node" + rank
os.chdir(rank if os.path.isdir(rank) else ".")
"""
MAIN = "from vitkd_ds.cli import main; main()"
HUB = {"model": "deit3_small_patch16_224.fb_in22k_ft_in1k", "checkpoint": "hub"}


def doctor(world_size, *flags, before=MAIN, cwd=ROOT, **environ):
    """Start the doctor on ranks that pretend to be separate nodes, each in cwd/RANK if that folder exists."""
    return start_ranks(world_size, "-c", PREAMBLE + before, "doctor", *flags, cwd=cwd, environ=environ)


def assert_found(output, *texts):
    words = " ".join(output.split())
    for text in texts:
        assert text in words


@pytest.fixture
def two_disks(small_beton, tmp_path):
    """A folder with a copy of the small images in 0/, and in 1/ a copy with one changed byte per image."""
    for rank in ("0", "1"):
        path = tmp_path / rank / "val.beton"
        path.parent.mkdir()
        shutil.copy(small_beton, path)
        shutil.copy(f"{small_beton}.json", f"{path}.json")
    content = bytearray(path.read_bytes())
    for offset in read_beton(path)[1]["offset"].tolist():
        content[offset + 100] ^= 1
    path.write_bytes(content)
    return tmp_path


def test_the_demo_is_healthy_on_one_rank_and_nothing_is_left_behind(demo_cache, tmp_path):
    done = run_command("vitkd-ds", "doctor", "--workdir", tmp_path / "run")
    assert_found(
        done.stdout,
        "ok versions",
        "FFCV and the compiled decoder load",
        "only one rank, so there is no communication",
        "1 ranks x 1 micro-batches x 48",
        "teacher (shard)",
        "losses finite",
        "6,000 images in 10 classes",
        "images, 95 % interval",
        "expected 91.15",
        "doctor: 1 warning,",
    )
    assert not any(line.startswith("error") for line in done.stdout.splitlines())
    assert "Warning" not in done.stderr and not list(tmp_path.iterdir())


def test_the_demo_is_healthy_on_two_ranks_and_their_nodes_are_measured(demo_cache, tmp_path):
    outputs = finish_ranks(doctor(2, "--workdir", tmp_path / "run"))
    assert_found(
        outputs[0],
        "2 ranks all-reduce 64 MiB at",
        "2 ranks x 1 micro-batches x 24",
        "expected 91.15",
        "2 ranks on 2 nodes",
    )
    assert "finding and remedy" not in outputs[1] and not list(tmp_path.iterdir())


def test_all_problems_are_reported_together_with_their_nodes(demo_cache, two_disks):
    workdir, teacher = two_disks / "file" / "run", two_disks / "teacher.safetensors"
    (two_disks / "file").touch()
    teacher.write_bytes(DEMO_TEACHER.read_bytes()[:1000])
    flags = ["--workdir", workdir, "--teacher.checkpoint", teacher, "--data.val", "val.beton", "--epochs=2.001"]
    outputs = finish_ranks(doctor(2, *flags, cwd=two_disks), codes=[1, 1])
    assert_found(
        outputs[0],
        "error teacher",
        f"{teacher} is damaged or not a safetensors file",
        "error run folder",
        f"cannot write to {workdir}: Not a directory",
        "rank 1 on node1: 'val.beton' has a bad image: image",
        "has changed since it was packed",
        "losses finite",
        "ok data.train decoding",
        "skipped teacher top-1",
        "error schedule",
        "the warm-up must be shorter than the run",
        "doctor: 4 errors, 1 warning",
    )


def test_a_non_finite_loss_and_missing_data_are_two_errors(tmp_path):
    flags = ["--recipe=demo_plain", "--losses.ce.weight=3e38", "--data.train=none.beton", "--workdir", tmp_path / "run"]
    assert_found(
        *finish_ranks(doctor(1, *flags, "--data.backend=torchvision"), codes=[1]),
        "ok decoder not needed",
        "error engines",
        "on random images a loss is inf or nan on some rank (on this rank: total",
        "error data.train",
        "none.beton",
        "skipped teacher top-1",
        "the recipe has no teacher",
    )


def test_a_missing_rank_is_reported_within_the_limit():
    limited = f"import vitkd_ds.commands.doctor as doctor; doctor.LIMIT_S = 1; {MAIN}"
    (output,) = finish_ranks(doctor(1, before=limited, WORLD_SIZE="2"), codes=[1])
    assert_found(output, "error start rank 0 on node0 has not finished this check after 1 s (running, or")


def test_an_unknown_option_is_rejected_as_in_train():
    done = run_command("vitkd-ds", "doctor", "--optim.lrr=1", check=False)
    assert done.returncode == 2 and "--optim.lrr is not an option: did you mean --optim.lr" in done.stderr


@pytest.mark.parametrize("free_mib, level", [(6.8, "error"), (7, "warning"), (10, "warning"), (10.4, "ok")])
def test_too_little_space_for_the_checkpoints_is_an_error(tmp_path, monkeypatch, free_mib, level):
    run = replace(build_run("demo"), workdir=str(tmp_path / "run"))
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda place: SimpleNamespace(free=free_mib * 2**20))
    patient = rows.Patient(run, CPU, ["here"], num_trained=100_000, state_bytes=800_000)
    found = {row.name: row for row in folder.check_folder(patient)}
    assert found["run folder"].level == "ok" and found["space"].level == level
    assert "4 checkpoints of 1.7 MiB need 6.9 MiB beyond the 0.0 MiB written; " in found["space"].found


def test_a_finished_folder_and_one_with_other_settings_are_reported(tmp_path):
    run = replace(build_run("demo"), workdir=str(tmp_path))
    finish(run)
    assert folder.run_row(run).level == "warning"
    assert folder.run_row(replace(run, resume="none")).level == "ok"
    (tmp_path / "checkpoints" / "step00000004").mkdir(parents=True)
    (tmp_path / "checkpoints" / "latest").write_text("step00000004")
    assert "needs an unused folder" in folder.run_row(replace(run, resume="none")).found


def test_a_warm_up_longer_than_the_run_is_an_error_once_its_steps_are_known():
    run = replace(build_run("demo"), epochs=2.004)
    assert not list(data.schedule_rows(run, 1000))
    (row,) = data.schedule_rows(run, 100)
    assert row.level == "error" and "got 200 of 200 steps (optim.warmup_epochs=2, 100 steps per epoch" in row.found


def test_failures_appear_once_with_their_nodes_and_successes_only_from_rank_0():
    good, bad = rows.ok("disk", "5 GiB"), rows.error("disk", "full", "clear it")
    nodes, many = ["a", "a", "b", "b"], [f"n{i}" for i in range(9)]
    assert rows.merged([[good]] * 4, nodes) == [good]
    assert rows.merged([[bad]] * 4, nodes) == [bad]
    assert rows.merged([[good], [good], [bad], [bad]], nodes) == [replace(bad, found="b: full")]
    assert rows.merged([[good], [good], [], [bad]], nodes) == [replace(bad, found="rank 3 on b: full")]
    assert rows.merged([[good], *[[bad]] * 8], many)[0].found == "n1, n2, n3, n4 and 4 more: full"
    slow = rows.warning("disk", "slow", "see")
    assert rows.merged([[good], [slow]], ["a", "b"]) == [replace(slow, found="rank 1 on b: slow")]


def test_the_verdict_counts_problems_and_sizes_have_units():
    assert [rows.size_text(size) for size in (2**30 - 2**20, 2**30, 3 * 2**29)] == ["1023.0 MiB", "1.0 GiB", "1.5 GiB"]
    good, bad = rows.ok("disk", "5 GiB", seconds=0.25), rows.error("disk", "full", "clear it")
    slow = rows.warning("network", "slow", "see")
    assert rows.table([good]).splitlines()[1:] == [f"{'ok':8} {'disk':20} {'0.2':>6}  5 GiB", "doctor: nothing to do"]
    for found, verdict in (([good, bad], "1 error"), ([bad, slow, slow], "1 error, 2 warnings"), ([slow], "1 warning")):
        assert rows.table(found).splitlines()[-1] == f"doctor: {verdict}"
    assert f"{' ' * 37}-> clear it" in rows.table([bad]).splitlines()


def test_space_already_used_by_checkpoints_is_not_required_again(tmp_path):
    run = replace(build_run("demo"), workdir=str(tmp_path))
    (tmp_path / "checkpoints" / "step00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step00000001" / "state").write_bytes(bytes(3 * 2**20))
    row = folder.space_row(run, 100_000, 800_000)
    assert row.level == "ok" and "need 3.9 MiB beyond the 3.0 MiB written" in row.found
    assert "need 0.0 MiB beyond" in folder.space_row(run, 1, 1).found


@pytest.mark.parametrize("silent_s, level", [(0, "error"), (90, "warning")])
def test_a_job_on_another_machine_holds_the_folder_until_long_silence(tmp_path, silent_s, level):
    lock = RunLock(tmp_path)
    (tmp_path / "lock").write_text(json.dumps(lock.me | {"machine": "another"}))
    seconds = (tmp_path / "lock").stat().st_mtime - silent_s
    os.utime(tmp_path / "lock", (seconds, seconds))
    (row,) = folder.lock_rows(tmp_path)
    assert row.level == level and ("in use by" in row.found) == (level == "error")


def test_teacher_accuracy_uses_trainings_class_numbers_for_any_validation_order(tmp_path):
    src, names = write_images(tmp_path / "images", 12), tmp_path / "names"
    names.write_text("b\na\n")
    path = str(pack(src, tmp_path / "val.beton", classes=str(names), write_mode="raw", workers=1).path)
    run = build_run("demo")
    data = replace(run.data, train=path, val=path, image_size=16, num_classes=2, num_workers=1)
    run = replace(run, data=data, teachers={"teacher": replace(run.teachers["teacher"], checkpoint="hub")})

    def all_knowing(images_BCHW):  # an image's red value is 20 times its number; even numbers are class a
        number_B = images_BCHW[:, 0, 0, 0].long() // 20
        return SimpleNamespace(logits_BK=torch.nn.functional.one_hot(number_B % 2, 2))

    patient = rows.Patient(
        run, CPU, ["here"], split=split_batch(4, world_size=1, limit=4), trained_teachers=["teacher"]
    )
    patient.parts = SimpleNamespace(teachers={"teacher": all_knowing}, answering=("teacher",))
    patient.loaders["val"] = SimpleNamespace(classes=("a", "b"))
    patient.run = replace(run, teachers=run.teachers | {"other": run.teachers["teacher"]})
    row, other = models.check_top1(patient)
    assert row.name == "teacher top-1" and "top-1 100.0 % on 12 images" in row.found
    assert (other.level, other.name) == ("skipped", "teachers.other top-1")


def test_only_a_killed_builds_lock_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert machine.build_locks_row().level == "ok"
    os.utime(lock, (0, time.time() - 3600))
    assert machine.build_locks_row().level == "warning" and machine.build_locks_row().advice == f"rm {lock}"


@pytest.mark.parametrize(
    "role, changes, in_cache, level, found",
    [
        ("teacher", HUB, None, "warning", "deit3_small_patch16_224.fb_in22k_ft_in1k are not in this node's cache"),
        ("teacher", HUB, str(DEMO_TEACHER), "ok", f"1.2 M parameters, {DEMO_TEACHER}"),
        ("teacher", {"checkpoint": "no-file"}, None, "error", "no-file"),
        ("student", {"init": "no-file"}, None, "error", "no-file"),
        ("student", {"model": "deit_tiny_patch"}, None, "error", "did you mean"),
    ],
)
def test_weights_are_not_downloaded_but_replaced_by_random_ones(monkeypatch, role, changes, in_cache, level, found):
    monkeypatch.setattr(models, "try_to_load_from_cache", lambda hub_id, name: in_cache)
    run = build_run("demo")
    row, model, has_weights = models.load_model(role, run.with_model(role, replace(run.models[role], **changes)))
    assert row.level == level and found in row.found and has_weights == (level == "ok")
    assert (model is None) == ("model" in changes and level == "error")


@pytest.mark.parametrize("whole, level, shares", [(48, "ok", "1 micro-batches x 48"), (106, "warning", "53 micro")])
def test_a_global_batch_that_splits_into_tiny_micro_batches_gives_a_warning(whole, level, shares):
    run = replace(build_run("demo"), global_batch_size=whole)
    (row,) = models.check_settings(rows.Patient(run, CPU))
    assert row.level == level and f"1 ranks x {shares}" in row.found


def test_the_lock_of_an_exited_job_does_not_block_its_requeue(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("VITKD_DS_START", "12.0")
    lock = RunLock(tmp_path)
    lock.acquire()
    assert next(folder.lock_rows(tmp_path)).level == "error", "the lock belongs to this process, which is running"
    monkeypatch.setenv("VITKD_DS_START", "12.1")
    (row,) = folder.lock_rows(tmp_path)
    assert row.level == "warning" and "which has exited" in row.found and "Slurm job 12" in row.found
    lock.release()
    assert not list(folder.lock_rows(tmp_path))


def test_all_reduce_speed_is_judged_by_the_devices_capability():
    assert machine.least_sum_gb_s("cpu", 1) < machine.least_sum_gb_s("NVIDIA L40S", 1)
    assert machine.least_sum_gb_s("NVIDIA H100 80GB HBM3", 1) > 5, "5 GB/s inside such a node is broken"
    assert machine.least_sum_gb_s("NVIDIA H100 PCIe", 1) == machine.least_sum_gb_s("NVIDIA L40S", 1)
    assert machine.least_sum_gb_s("NVIDIA H100 80GB HBM3", 4) < machine.least_sum_gb_s("NVIDIA H100 80GB HBM3", 1)


NO_COMPILER = """
import torch; from vitkd_ds.commands.doctor.machine import compiler_row
row = compiler_row(torch.device("cpu")); print(row.level, row.advice)
"""


@pytest.mark.slow
@pytest.mark.cold
def test_a_missing_compiler_is_an_error(tmp_path):
    assert machine.compiler_row(torch.device("cpu")).level == "ok"
    environ = os.environ | {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    said = subprocess.run([sys.executable, "-c", NO_COMPILER], env=environ, capture_output=True, text=True, check=True)
    assert "error install gcc" in said.stdout and "--compile=false" in said.stdout
