"""The whole program for real: launchers, a killed and resumed run, finished folders, eval, export, every recipe."""

import json
import shutil
import signal
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import (
    assert_same_result,
    everything_on,
    finish_ranks,
    free_port,
    metrics_of,
    run_command,
    run_several,
    start_ranks,
    wait_for_steps,
)  # fmt: skip
from vitkd_ds.commands.pack import pack
from vitkd_ds.data.demo import demo_beton
from vitkd_ds.recipes import RECIPES, build_run

SUMMARY_KEYS = {
    "student_top1", "student_top5", "teacher_top1", "agreement", "images_per_s", "epochs", "steps", "world_size",
    "debug",
}  # fmt: skip
STATE_FILE = "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit_and_a_damaged_checkpoint_is_skipped(whole_run, small_beton, tmp_path):
    processes = start_ranks(2, "train.py", *everything_on(tmp_path / "killed", small_beton))
    wait_for_steps(processes, tmp_path / "killed", 20)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    tag = (tmp_path / "killed" / "checkpoints" / "latest").read_text()
    assert 0 < int(tag.removeprefix("step")) % 7 and not (tmp_path / "killed" / "done").exists(), "not within an epoch"
    for name in ("step00000028", "step00000030"):
        shutil.copytree(whole_run / "checkpoints" / name, tmp_path / "damaged" / "checkpoints" / name)
    (tmp_path / "damaged" / "checkpoints" / "latest").write_text("step00000030")
    (tmp_path / "damaged" / "checkpoints" / "step00000030" / STATE_FILE).write_bytes(b"")
    commands = [everything_on(tmp_path / name, small_beton) for name in ("killed", "damaged", "branch")]
    commands[2].append(f"--resume={whole_run}/checkpoints/step00000028")
    said = [outcome["said"] for outcome in run_several(2, tmp_path / "commands", commands)]
    assert f"step {int(tag.removeprefix('step'))} of 30" in said[0]
    assert f"step00000030: {STATE_FILE} has 0 bytes instead of" in said[1]
    assert "step 28 of 30" in said[1] and "step 28 of 30" in said[2]
    assert_same_result(tmp_path / "killed", whole_run)
    for name in ("damaged", "branch"):
        student = (tmp_path / name / "student.safetensors").read_bytes()
        assert student == (whole_run / "student.safetensors").read_bytes()


def test_the_run_folder_has_the_documented_files(whole_run):
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


def test_a_finished_run_is_left_alone_and_a_folder_is_rejected_for_other_settings(whole_run, small_beton, tmp_path):
    used, unused = tmp_path / "used", tmp_path / "unused"
    shutil.copytree(whole_run, used)
    (used / "done").unlink()
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    commands = [everything_on(whole_run, small_beton)]
    refused = [
        (used, ["--resume=none"], "--resume none needs an unused folder"),
        (unused, ["--resume=/nowhere"],
         "--resume must be auto, none, or an existing run or checkpoint folder, got '/nowhere'"),
        (unused, [f"--resume={tmp_path}"], "--resume must be auto, none, a run folder or a checkpoint in one"),
        (unused, [f"--resume={whole_run}/checkpoints/step00000028", "--optim.lr=0.5"],
         "optim.lr: 0.002 there, 0.5 now"),
    ]  # fmt: skip
    commands += [[*everything_on(workdir, small_beton), *more] for workdir, more, _ in refused]
    finished, *outcomes = run_several(1, tmp_path / "commands", commands)
    assert "is already finished" in finished["said"]
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    for (_, _, message), outcome in zip(refused, outcomes, strict=True):
        assert message in outcome["refused"]
    assert not unused.exists()
    done = run_command(sys.executable, "train.py", *everything_on(used, small_beton), "--optim.lr=0.5", check=False)
    assert done.returncode == 2 and "optim.lr: 0.002 there, 0.5 now" in done.stderr


def test_a_finished_run_of_other_settings_or_images_is_rejected_but_not_a_moved_copy(whole_run, small_beton, tmp_path):
    copy, other = tmp_path / "copy.beton", tmp_path / "other.beton"
    for suffix in ("", ".json"):
        shutil.copy(f"{small_beton}{suffix}", f"{copy}{suffix}")
    pack(small_beton.parent / "images", other, write_mode="raw", max_resolution=0, shuffle=True)
    before = {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}
    base = everything_on(whole_run, small_beton)
    refused = [
        ([*base, "--optim.lr=0.5"], "optim.lr: 0.002 there, 0.5 now. Pass another --workdir for a new run."),
        ([*base, "--max_steps=40"], "30 there, 40 now. Pass another --workdir for a new run, or add --extend to"),
        (everything_on(whole_run, other), f"data.train={small_beton}, but {other} has other images. Pass"),
        ([*base, f"--data.val={other}"], f"was trained with data.val=demo, but {other} has other images"),
        ([*base, "--max_steps=20", "--extend"], "--extend needs more than the 30 steps of"),
    ]  # fmt: skip
    moved = [*everything_on(whole_run, copy), f"--data.val={demo_beton('val')}"]
    moved, *outcomes = run_several(1, tmp_path / "commands", [moved, *(options for options, _ in refused)])
    assert "is already finished" in moved["said"]
    for (_, message), outcome in zip(refused, outcomes, strict=True):
        assert message in outcome["refused"]
    assert before == {path: path.stat().st_mtime_ns for path in whole_run.rglob("*")}


def test_an_extended_run_continues_like_the_longer_run(whole_run, small_beton, tmp_path):
    extended, cut, none_left = tmp_path / "extended", tmp_path / "cut", tmp_path / "none_left"
    for folder in (extended, cut, none_left):
        shutil.copytree(whole_run, folder)
    (cut / "done").unlink()
    shutil.rmtree(none_left / "checkpoints")
    longer = ["--max_steps=36", "--extend"]
    commands = [[*everything_on(folder, small_beton), *longer] for folder in (extended, cut, extended, none_left)]
    commands += [[*everything_on(extended, small_beton), "--max_steps=36"]]
    first, unfinished, again, refused, plain = run_several(2, tmp_path / "commands", commands)
    assert "step 30 of 36" in first["said"] and first["summary"]["steps"] == 36 == unfinished["summary"]["steps"]
    assert_same_result(extended, cut)
    assert json.loads((extended / "config.json").read_text())["extended_at_steps"] == [30]
    rates = {line["step"]: line["lr"] for line in metrics_of(extended) if "total" in line}
    assert list(rates) == list(range(1, 37)) and rates[31] > rates[30] and rates[36] == pytest.approx(1e-5)
    assert "is already finished" in again["said"] and "is already finished" in plain["said"]
    assert "--extend needs the last checkpoint" in refused["refused"] and not (none_left / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_resumes_on_another_number_of_ranks(whole_run, small_beton, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole_run, workdir)
    (workdir / "done").unlink()
    (workdir / "checkpoints" / "latest").write_text("step00000028")
    command = ["train.py", *everything_on(workdir, small_beton)]
    refused = finish_ranks(start_ranks(3, *command), codes=[2] * 3)
    message = "global_batch_size must be a multiple of the number of ranks, got 8 and 3 ranks. Use 1, 2, 4, 8"
    assert message in refused[0]
    assert "step 28 of 30" in run_command(sys.executable, *command).stderr
    assert [line["step"] for line in metrics_of(workdir) if "total" in line] == list(range(1, 31))
    found, expected = load_file(workdir / "student.safetensors"), load_file(whole_run / "student.safetensors")
    for name, weight in expected.items():
        # Two updates with other masks and mixing: about the learning rate, 1e-5 here, per weight and update at most.
        torch.testing.assert_close(found[name], weight, rtol=0, atol=2e-5)


def test_the_export_is_a_plain_timm_model_with_the_same_logits(whole_run, tmp_path):
    run_command("vitkd-ds", "export", whole_run, tmp_path / "out")
    made = json.loads((tmp_path / "out" / "student.json").read_text())
    images, logits = torch.randn(2, 3, 28, 28), []
    for folder in (tmp_path / "out", whole_run):
        model = timm.create_model(made["model"], **made["args"]).eval()
        model.load_state_dict(load_file(folder / "student.safetensors"), strict=True)
        logits.append(model(images))
    assert torch.equal(*logits)
    assert made["weights"] == "ema" and made["step"] == 30 and len(made["classes"]) == 10
    refused = run_command("vitkd-ds", "export", whole_run, tmp_path / "out", check=False)
    assert refused.returncode == 2 and "already exists" in refused.stderr


def test_eval_of_the_export_matches_the_summary(whole_run):
    done = run_command("vitkd-ds", "eval", whole_run)
    found = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()}
    summary = json.loads((whole_run / "summary.json").read_text())
    assert found["num_images"] == 64, "as many as the run evaluates on"
    for name in ("top1", "top5"):
        assert found[name] == pytest.approx(summary[f"student_{name}"], abs=0.01)
    assert found["agreement"] == pytest.approx(summary["agreement"], abs=2), "the run's teacher computes in bf16"


def default_run(workdir, *options, launcher=(sys.executable,), world_size=1):
    """The losses of the default command."""
    command = ["train.py", "--ds_config", "ds_configs/zero2.json", "--debug", "--workdir", workdir, *options]
    run_command(*launcher, *command)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS and summary["teacher_top1"] > 50 and summary["world_size"] == world_size
    return [line["total"] for line in metrics_of(workdir) if "total" in line]


@pytest.mark.parametrize("launcher", ["deepspeed --num_accelerators", "torchrun --nproc_per_node"])
def test_the_default_command_works_under_each_launcher(launcher, tmp_path, demo_cache):
    default_run(tmp_path / "2024_01", launcher=[*launcher.split(), 2, "--master_port", free_port()], world_size=2)


@pytest.mark.slow
def test_the_default_command_works_without_a_launcher_and_compiled_up_to_bf16_rounding(tmp_path, demo_cache):
    eager, compiled = default_run(tmp_path / "2024_01"), default_run(tmp_path / "compiled", "--compile")
    assert len(eager) == 4 and compiled == pytest.approx(eager, rel=2**-6)


SMALL_TEACHERS = {
    "vit_small_from_dinov3_7b": ['--teacher.model_args={"depth": 3, "embed_dim": 256, "num_heads": 4}'],
    "deit_tiny_soft_kd": ["--teacher.model=cait_xxs24_224"],
    "deit_tiny_vkd_regnety160": ["--teacher.model=regnety_002"],
    "deit_small_vkd_regnety160": ["--teacher.model=regnety_002"],
}


def shallow(recipe):
    """Options for as many blocks as the losses tap, or a small teacher of the same kind.

    At full depth, the pair with DeiT III-Large takes most of a minute.
    """
    if recipe.startswith("demo_"):
        return []
    teacher = SMALL_TEACHERS.get(recipe, ['--teacher.model_args={"depth": 3}'])
    return ['--student.model_args={"depth": 3}', *teacher]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "shape", [pytest.param("shallow", marks=pytest.mark.slow), pytest.param("whole", marks=pytest.mark.long)]
)
def test_every_recipe_runs_its_debug_size(shape, tmp_path, demo_cache):
    recipes = [name for name in RECIPES if name not in ("demo", "images")]
    commands = [
        [f"--recipe={name}", "--debug", "--max_steps=1", f"--workdir={tmp_path / name}"]
        + (shallow(name) if shape == "shallow" else [])
        for name in recipes
    ]
    outcomes = run_several(1, tmp_path / "commands", commands, timeout=800)
    for name, outcome in zip(recipes, outcomes, strict=True):
        summary, is_plain = outcome["summary"], name.startswith("demo_")
        assert summary["debug"] is True and summary == json.loads((tmp_path / name / "summary.json").read_text())
        is_label_free = build_run(name).data.labels == "ignore"
        assert (summary.get("teacher_top1") is None) == (is_plain or is_label_free)
        assert ("cka" in summary) == is_label_free
        assert ("random weights" in outcome["said"]) == (not is_plain)


def test_a_mistyped_flag_is_rejected_before_anything_happens(tmp_path):
    done = run_command(sys.executable, "train.py", "--workdri", tmp_path / "run", check=False)
    assert done.returncode == 2 and "--workdri is not an option: did you mean --workdir?" in done.stderr
    assert "deepspeed" not in done.stderr.lower() and not (tmp_path / "run").exists()
