"""The front door, for real: launchers, a killed and resumed run, finished folders, eval, export, every recipe."""

import json
import signal
import sys
import time

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import (
    ROOT,
    everything_on,
    finish_ranks,
    free_port,
    metrics_of,
    numerics_of,
    run_command,
    start_ranks,
    wait_for_steps,
)  # fmt: skip
from vitkd_ds.recipes import RECIPES

SUMMARY_KEYS = {
    "student_top1", "student_top5", "teacher_top1", "agreement", "images_per_s", "epochs", "steps", "world_size",
    "debug",
}  # fmt: skip


def test_a_run_killed_in_the_middle_of_an_epoch_continues_bit_for_bit(whole_run, small_beton, tmp_path):
    workdir = tmp_path / "killed"
    processes = start_ranks(2, *everything_on(workdir, small_beton))
    wait_for_steps(processes, workdir, 20)
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
    assert "step00000030 is damaged and passed over: bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt must" in outputs[0]
    assert "step 28 of 30" in outputs[0]
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
        assert done.returncode == 2 and message in done.stderr
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
    assert done.returncode == 2 and "optim.lr: 0.002 there, 0.5 now" in done.stderr
    done = run_command(sys.executable, *command, "--resume=none", check=False)
    assert done.returncode == 2 and "--resume none needs an unused folder" in done.stderr


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_and_zero_stage(whole_run, small_beton, tmp_path):
    workdir = tmp_path / "run"
    run_command("cp", "-r", whole_run, workdir)
    (workdir / "done").unlink()
    (workdir / "checkpoints" / "latest").write_text("step00000028")
    config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    stage_1 = tmp_path / "zero1.json"
    stage_1.write_text(json.dumps(config | {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}))
    refused = finish_ranks(start_ranks(3, *everything_on(workdir, small_beton)), codes=[2] * 3)
    assert (
        "global_batch_size must be a multiple of the number of ranks, found 8 and 3 ranks: use 1, 2, 4, 8" in refused[0]
    )
    done = run_command(sys.executable, *everything_on(workdir, small_beton), f"--ds_config={stage_1}")
    assert "step 28 of 30" in done.stderr
    assert [line["step"] for line in metrics_of(workdir) if "total" in line] == list(range(1, 31))
    found, expected = load_file(workdir / "student.safetensors"), load_file(whole_run / "student.safetensors")
    for name, weight in expected.items():
        # Two updates with other masks and mixing: at most about the learning rate, 1e-5 there, a weight and update.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)


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
    assert refused.returncode == 2 and "must not exist yet" in refused.stderr


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
    assert done.returncode == 2 and "--workdri is no option: did you mean workdir?" in done.stderr
    assert "deepspeed" not in done.stderr.lower() and not (tmp_path / "run").exists()
    assert time.time() - started < 60


def test_a_compiled_run_has_the_same_losses_up_to_bf16_rounding(tmp_path, demo_cache):
    totals = []
    for option in ("--compile=false", "--compile"):
        workdir = tmp_path / option
        run_command(sys.executable, "train.py", "--debug", "--max_steps=3", f"--workdir={workdir}", option)
        totals.append([line["total"] for line in metrics_of(workdir) if "total" in line])
    assert len(totals[0]) == 3 and totals[1] == pytest.approx(totals[0], rel=2**-6)
