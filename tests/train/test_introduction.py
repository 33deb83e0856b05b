"""What a run says of its models and its learning rate when it begins."""

import json
from dataclasses import replace

import timm

from tests.conftest import run_several
from vitkd_ds.recipes import build_run
from vitkd_ds.train.introduction import model_costs


def test_costs_are_those_of_the_models_that_are_trained(caplog):
    costs = model_costs(build_run("demo"))
    student, teacher = (
        timm.create_model(config.model, img_size=28, num_classes=10, **config.model_args)
        for config in (build_run("demo").student, build_run("demo").teacher)
    )
    for role, model in ("student", student), ("teacher", teacher):
        assert costs[role]["parameters"] == sum(p.numel() for p in model.parameters())
        assert costs[role]["tokens"] == 50 and costs[role]["model"] == getattr(build_run("demo"), role).model
    assert 5 < costs["teacher"]["gflops"] / costs["student"]["gflops"] < 6
    assert model_costs(build_run("demo_plain"))["teacher"] is None
    run = build_run("demo")
    logits = replace(run.losses, vitkd=replace(run.losses.vitkd, weight=0))
    regnet = replace(run, losses=logits, teacher=replace(run.teacher, model="regnety_002", model_args={}))
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
    assert "50 tokens, 0.0225 GFLOPs an image of 28 pixels, weights: random" in said
    assert "teacher: deit3_small_patch16_224 {" in said and "1.21 M parameters" in said and "weights: demo" in said
    assert (
        "learning rate: 0.002 for 48 images is 0.001 for 24, reached after 3 of 10 steps and falling to 1e-06" in said
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["models"] == model_costs(build_run("demo"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert max(rates) == rates[3] == 1e-3 and rates[9] == 1e-6


def test_a_warm_up_that_takes_the_whole_run_is_warned_of(tmp_path, demo_cache):
    command = ["--recipe=demo_plain", "--debug", "--max_steps=2", f"--workdir={tmp_path / 'run'}"]
    (outcome,) = run_several(1, tmp_path / "commands", [command])
    assert "the learning rate never falls: the warm-up takes all 2 steps of this debug run" in outcome["said"]


def test_a_run_of_a_few_steps_of_the_demo_trains_and_says_once_that_its_warm_up_is_shorter(tmp_path, demo_cache):
    command = ["--recipe=demo_plain", "--max_steps=5", f"--workdir={tmp_path / 'run'}", "--data.max_val_images=64"]
    (outcome,) = run_several(1, tmp_path / "commands", [command])
    assert outcome["said"].count("the warm-up is shortened from 250 to 1 steps") == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lr" in line] == [5]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plan"]["warmup_steps"] == 1
