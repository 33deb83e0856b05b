"""A run's opening messages about its models and its learning rate."""

import json
from dataclasses import make_dataclass, replace
from types import SimpleNamespace

import pytest
import timm
import torch

from tests.conftest import metrics_of, run_several
from vitkd_ds.models.cost import step_gflops
from vitkd_ds.recipes import build_run
from vitkd_ds.train.introduction import describe_run, model_costs


def test_costs_match_the_trained_models(caplog):
    costs = model_costs(build_run("demo"))
    student, teacher = (
        timm.create_model(config.model, img_size=28, num_classes=10, **config.model_args)
        for config in (build_run("demo").student, build_run("demo").teachers["teacher"])
    )
    for role, model in ("student", student), ("teacher", teacher):
        assert costs[role]["parameters"] == sum(p.numel() for p in model.parameters())
        assert costs[role]["tokens"] == 50 and costs[role]["model"] == build_run("demo").models[role].model
    assert 5 < costs["teacher"]["gflops"] / costs["student"]["gflops"] < 6
    assert model_costs(build_run("demo_plain"))["teacher"] is None
    run = build_run("demo")
    losses = replace(run.losses, nkd=replace(run.losses.nkd, teacher="other"))
    two = model_costs(replace(run, losses=losses, teachers=run.teachers | {"other": run.teachers["teacher"]}))
    assert two == {"student": costs["student"], "teachers": dict.fromkeys(("teacher", "other"), costs["teacher"])}
    assert step_gflops(two) == step_gflops(costs) + costs["teacher"]["gflops"]
    run = build_run("demo")
    logits = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0))
    regnet = replace(
        run, losses=logits, teachers={"teacher": replace(run.teachers["teacher"], model="regnety_002", model_args={})}
    )
    assert model_costs(regnet)["teacher"]["tokens"] is None and model_costs(regnet)["teacher"]["gflops"] > 0


def test_the_start_names_both_models_and_the_scaled_learning_rate(tmp_path, demo_cache):
    command = [
        "--recipe=demo", "--debug", "--max_steps=10", f"--workdir={tmp_path / 'run'}", "--eval_every_epochs=0",
        "--global_batch_size=24", "--optim.lr=2e-3", "--optim.warmup_epochs=0", "--optim.warmup_fraction=0.3",
        "--optim.min_lr=1e-6",
    ]  # fmt: skip
    (outcome,) = run_several(1, tmp_path / "commands", [command])
    said = outcome["said"]
    assert "student: deit_tiny_patch16_224 {'patch_size': 4, 'embed_dim': 64, 'depth': 4, 'num_heads': 2}, 0.2" in said
    assert "50 tokens, 0.0225 GFLOPs per 28-px image, weights: random" in said
    assert "teacher: deit3_small_patch16_224 {" in said and "1.21 M parameters" in said and "weights: demo" in said
    rate = "peak learning rate: 0.001 for a batch of 24 images (optim.lr is 0.002 for 48 images), "
    assert f"{rate}reached after 3 of 10 steps, then falling" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["models"] == model_costs(build_run("demo"))
    rates = [line["lr"] for line in metrics_of(tmp_path / "run") if "lr" in line]
    assert max(rates) == rates[3] == 1e-3 and rates[9] == 1e-6


def test_a_warm_up_as_long_as_the_run_gives_a_warning_and_a_shortened_one_one_message(tmp_path, demo_cache):
    base = ["--recipe=demo_plain", "--data.max_val_images=64"]
    lengths = {"debug": ["--debug", "--max_steps=2"], "run": ["--max_steps=5"]}
    commands = [[*base, *words, f"--workdir={tmp_path / name}"] for name, words in lengths.items()]
    debug, short = run_several(1, tmp_path / "commands", commands)
    assert "the learning rate never decays: the warm-up takes all 2 steps of this debug run" in debug["said"]
    assert short["said"].count("the warm-up is shortened from 250 to 1 steps") == 1
    assert [line["step"] for line in metrics_of(tmp_path / "run") if "lr" in line] == [5]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plan"]["warmup_steps"] == 1


def config_of(workdir, *, resumed_step, before=None, extend=False):
    """config.json of a start at this step of a 9-step run, replacing the previous start's file."""
    if before:
        (workdir / "config.json").write_text(json.dumps(before))
    run = replace(build_run("demo"), workdir=str(workdir), extend=extend)
    schedule = make_dataclass("Steps", [("total_steps", int)])(9)
    loaders = {f"{split}_loader": SimpleNamespace(fingerprint=key) for split, key in (("train", 5), ("val", 6))}
    parts = SimpleNamespace(run=run, schedule=schedule, device=torch.device("cpu"), phases=None, **loaders)
    describe_run(parts, resumed_step, models={"student": {"parameters": 7}, "teacher": None}, workdir="made")
    return json.loads((workdir / "config.json").read_text())


def test_config_json_records_the_run_its_starts_and_its_models(tmp_path):
    (tmp_path / "done").touch()  # the run is extended
    first = {"step": 0, "ranks": 3}
    before = {"plan": {"total_steps": 4}, "extended_at_steps": [2], "starts": [first]}
    config = config_of(tmp_path, resumed_step=4, before=before)
    assert config["run"]["student"]["model"] == "deit_tiny_patch16_224" and config["run"]["seed"] == 0
    assert config["run"]["workdir"] == "made", "as named on the command line, so that a stored run may move"
    assert config["plan"] == {"total_steps": 9} and config["resumed_step"] == 4
    assert config["extended_at_steps"] == [2, 4]
    assert config["starts"][0] == first and (config["starts"][1]["step"], config["starts"][1]["ranks"]) == (4, 1)
    assert not (tmp_path / "done").exists()
    assert config["models"] == {"student": {"parameters": 7}, "teacher": None}
    assert config["images"] == {"train": 5, "val": 6}
    assert config["world_size"] == 1 and config["device"] == "cpu" and config["command"]
    assert config["versions"].keys() == {"vitkd_ds", "torch", "deepspeed", "timm", "ffcv", "numpy"}


@pytest.mark.parametrize("before, extend, resumed_step, expected", [
    (None, False, 0, []), (None, False, 4, []), (None, True, 4, [4]), ({"plan": {"total_steps": 9}}, True, 4, []),
    ({"plan": {"total_steps": 8}}, True, 4, [4]), ({"plan": {"total_steps": 8}, "extended_at_steps": [3]}, True, 0, []),
    ({"plan": {"total_steps": 9}, "extended_at_steps": [3]}, False, 6, [3]),
])  # fmt: skip
def test_config_json_keeps_the_steps_at_which_a_run_was_extended(tmp_path, before, extend, resumed_step, expected):
    config = config_of(tmp_path, resumed_step=resumed_step, before=before, extend=extend)
    assert config["extended_at_steps"] == expected and len(config["starts"]) == 1


@pytest.mark.parametrize("content", ["", '{"plan": 3}', '{"plan": {"total_steps": "9"}}'])
def test_a_start_that_extends_a_damaged_config_json_names_it(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json (is|has no) "):
        config_of(tmp_path, resumed_step=3)
