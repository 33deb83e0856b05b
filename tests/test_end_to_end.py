"""The front door, for real: launchers, a killed and resumed run, finished folders, eval, export, every recipe."""

import json
import signal
import sys
import time

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.conftest import ROOT, finish_ranks, free_port, run_command, start_ranks
from vitkd_ds.data.fashion_mnist import CLASSES
from vitkd_ds.data.pack import pack
from vitkd_ds.recipes import RECIPES

SUMMARY_KEYS = {
    "student_top1", "student_top5", "teacher_top1", "agreement", "images_per_s", "epochs", "steps", "world_size",
    "debug",
}  # fmt: skip
TIMES = {"images_per_s", "s_per_step", "memory_gib"}


@pytest.fixture(scope="module")
def small_beton(tmp_path_factory):
    """60 random images in the demo's 10 classes: 7 updates of 8 images an epoch."""
    folder = tmp_path_factory.mktemp("small")
    pixels = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8))
            image.save(folder / "images" / name / f"{i}.png")
    pack(folder / "images", folder / "small.beton", write_mode="raw", max_resolution=0)
    return folder / "small.beton"


def everything_on(workdir, data):
    """A demo run that uses all that must be resumed: average, drop path, mixing, accumulation, a schedule."""
    return [
        "train.py", "--recipe=demo", "--debug", f"--workdir={workdir}", f"--data.train={data}", "--max_steps=30",
        "--optim.lr=0.002",
        "--global_batch_size=8", "--micro_batch_size_per_gpu=2", "--checkpoint.every_steps=4", "--optim.ema_decay=0.9",
        "--student.drop_path_rate=0.2", "--augment.mixup_alpha=0.8", "--augment.cutmix_alpha=1",
        "--losses.nkd.schedule=cosine",
    ]  # fmt: skip


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numerics_of(workdir):
    return [{key: value for key, value in line.items() if key not in TIMES} for line in metrics_of(workdir)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, small_beton, demo_cache):
    """An uninterrupted run on two ranks."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish_ranks(start_ranks(2, *everything_on(workdir, small_beton)))
    return workdir


def test_a_run_killed_in_the_middle_of_an_epoch_continues_bit_for_bit(whole_run, small_beton, tmp_path):
    workdir = tmp_path / "killed"
    processes = start_ranks(2, *everything_on(workdir, small_beton))
    deadline = time.time() + 120
    log = workdir / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= 18):
        assert time.time() < deadline and processes[0].poll() is None, processes[0].communicate()[0][-4000:]
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    tag = (workdir / "checkpoints" / "latest").read_text()
    assert 0 < int(tag.removeprefix("step")) % 7 and not (workdir / "done").exists()
    outputs = finish_ranks(start_ranks(2, *everything_on(workdir, small_beton)))
    assert f"step {int(tag.removeprefix('step'))} of 30" in outputs[0]
    assert numerics_of(workdir) == numerics_of(whole_run)
    assert (workdir / "student.safetensors").read_bytes() == (whole_run / "student.safetensors").read_bytes()


def test_a_damaged_newest_checkpoint_is_left_for_the_next_older_one(whole_run, small_beton, tmp_path):
    workdir = tmp_path / "damaged"
    copied = workdir / "checkpoints"
    copied.mkdir(parents=True)
    run_command("cp", "-r", *(whole_run / "checkpoints" / tag for tag in ("step00000028", "step00000030")), copied)
    (copied / "latest").write_text("step00000030")
    (copied / "step00000030" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").write_bytes(b"")
    outputs = finish_ranks(start_ranks(2, *everything_on(workdir, small_beton)))
    assert all("step00000030 cannot be read" in output for output in outputs) and "step 28 of 30" in outputs[0]
    assert (workdir / "student.safetensors").read_bytes() == (whole_run / "student.safetensors").read_bytes()


def test_a_run_can_start_from_a_named_checkpoint_of_another_folder(whole_run, small_beton, tmp_path):
    named = whole_run / "checkpoints" / "step00000028"
    workdir = tmp_path / "branch"
    outputs = finish_ranks(start_ranks(2, *everything_on(workdir, small_beton), f"--resume={named}"))
    assert "step 28 of 30" in outputs[0]
    assert (workdir / "student.safetensors").read_bytes() == (whole_run / "student.safetensors").read_bytes()
    for wrong, message in (
        (["--resume=/nowhere"], "--resume must be auto, none, or the folder of a run or checkpoint, found '/nowhere'"),
        ([f"--resume={tmp_path}"], "--resume must be auto, none, a run folder or a checkpoint in one"),
        ([f"--resume={named}", "--optim.lr=0.5"], "optim.lr: 0.002 there, 0.5 now"),
    ):
        command = [*everything_on(tmp_path / "wrong", small_beton), *wrong]
        done = run_command(sys.executable, *command, check=False)
        assert done.returncode == 1 and message in done.stderr
        assert not (tmp_path / "wrong").exists()


def test_the_run_folder_holds_what_is_promised(whole_run):
    summary = json.loads((whole_run / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS | {"student_raw_top1"}
    assert summary["steps"] == 30 and summary["world_size"] == 2 and summary["debug"] is True
    config = json.loads((whole_run / "config.json").read_text())
    assert config["run"]["optim"]["ema_decay"] == 0.9 and config["versions"]["deepspeed"]
    lines = [line for line in metrics_of(whole_run) if "total" in line]
    assert [line["step"] for line in lines] == list(range(1, 31)), "each step once"
    for key in ("ce", "nkd", "vitkd_mimic", "vitkd_generate", "lr", "grad_norm", "memory_gib", "images_per_s"):
        assert key in lines[-1]
    tags = sorted(path.name for path in (whole_run / "checkpoints").glob("step*"))
    best = whole_run / "checkpoints" / "best"
    kept = {"step00000028", "step00000030", best.read_text()}
    assert set(tags) == kept and (whole_run / "checkpoints" / "latest").read_text() == "step00000030"
    assert any((whole_run / "tensorboard").iterdir())


def test_a_finished_run_is_left_alone(whole_run, small_beton):
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    done = run_command(sys.executable, *everything_on(whole_run, small_beton))
    assert "finished and left alone" in done.stderr
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}


def test_a_used_folder_is_not_used_again_with_other_settings(whole_run, small_beton, tmp_path):
    command = everything_on(tmp_path / "run", small_beton)
    run_command("cp", "-r", whole_run, tmp_path / "run")
    (tmp_path / "run" / "done").unlink()
    done = run_command(sys.executable, *command, "--optim.lr=0.5", check=False)
    assert done.returncode == 1 and "optim.lr: 0.002 there, 0.5 now" in done.stderr
    done = run_command(sys.executable, *command, "--resume=none", check=False)
    assert done.returncode == 1 and "--resume none needs an unused folder" in done.stderr


def test_another_number_of_ranks_is_refused_with_a_way_on(whole_run, small_beton, tmp_path):
    run_command("cp", "-r", whole_run, tmp_path / "run")
    (tmp_path / "run" / "done").unlink()
    done = run_command(sys.executable, *everything_on(tmp_path / "run", small_beton), check=False)
    assert done.returncode == 1 and "must be continued by as many ranks as wrote it, 2, found 1" in done.stderr


def test_the_export_is_a_plain_timm_model_with_the_same_logits(whole_run, tmp_path):
    run_command("vitkd-ds", "export", whole_run, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "student.json").read_text())
    model = timm.create_model(made["model"], **made["args"]).eval()
    model.load_state_dict(load_file(tmp_path / "out" / "student.safetensors"), strict=True)
    again = timm.create_model(made["model"], **made["args"]).eval()
    again.load_state_dict(load_file(whole_run / "student.safetensors"), strict=True)
    images = torch.randn(2, 3, 28, 28)
    assert torch.equal(model(images), again(images))
    assert made["weights"] == "ema" and made["step"] == 30 and len(made["classes"]) == 10
    refused = run_command("vitkd-ds", "export", whole_run, tmp_path / "out", check=False)
    assert refused.returncode == 1 and "must not exist yet" in refused.stderr


def test_eval_of_the_export_gives_the_summarys_numbers(whole_run):
    done = run_command("vitkd-ds", "eval", whole_run)
    found = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    summary = json.loads((whole_run / "summary.json").read_text())
    assert found["top1"] == pytest.approx(summary["student_top1"], abs=0.01)
    assert found["top5"] == pytest.approx(summary["student_top5"], abs=0.01)
    assert found["agreement"] == pytest.approx(summary["agreement"], abs=2), "the run's teacher computes in bf16"


@pytest.mark.parametrize("launcher", [
    ["deepspeed", "--num_accelerators", "2", "--master_port", "PORT"],
    ["torchrun", "--nproc_per_node", "2", "--master_port", "PORT"],
    [sys.executable],
], ids=["deepspeed", "torchrun", "python"])  # fmt: skip
def test_the_default_command_works_under_each_launcher(launcher, tmp_path, demo_cache):
    launcher = [free_port() if word == "PORT" else word for word in launcher]
    options = ["train.py", "--ds_config", "ds_configs/zero2.json", "--debug", "--workdir", tmp_path / "2024_01"]
    run_command(*launcher, *options)
    summary = json.loads((tmp_path / "2024_01" / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS and summary["teacher_top1"] > 50
    assert summary["world_size"] == (1 if launcher == [sys.executable] else 2)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "demo"])
def test_every_recipe_runs_its_debug_size(recipe, tmp_path, demo_cache):
    done = run_command(
        sys.executable, "train.py", "--recipe", recipe, "--debug", "--workdir", tmp_path / "run", "--max_steps=1"
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["debug"] is True and (summary["teacher_top1"] is None) == recipe.startswith("demo_")
    assert ("random weights" in done.stderr) == (not recipe.startswith("demo_"))


def test_a_mistyped_flag_is_refused_before_anything_happens(tmp_path):
    started = time.time()
    done = run_command(sys.executable, "train.py", "--workdri", tmp_path / "run", check=False, cwd=ROOT)
    assert done.returncode == 1 and "--workdri is no option: did you mean workdir?" in done.stderr
    assert "deepspeed" not in done.stderr.lower() and not (tmp_path / "run").exists()
    assert time.time() - started < 60


def test_a_compiled_run_has_the_same_losses_up_to_bf16_rounding(tmp_path, demo_cache):
    totals = []
    for option in ("--compile=false", "--compile"):
        workdir = tmp_path / option
        run_command(sys.executable, "train.py", "--debug", "--max_steps=3", f"--workdir={workdir}", option)
        totals.append([line["total"] for line in metrics_of(workdir) if "total" in line])
    assert len(totals[0]) == 3 and totals[1] == pytest.approx(totals[0], rel=2**-6)
