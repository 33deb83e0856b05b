"""Command line -> run: text stays text, fields convert by type, what is unknown is refused with the nearest name."""

import dataclasses
import json

import pytest

from vitkd_ds.cli import main, parse_run
from vitkd_ds.config.overrides import apply_overrides, convert, field_types, from_dict
from vitkd_ds.config.run import Run, as_dict, check_run
from vitkd_ds.recipes import RECIPES, build_run


def test_without_arguments_the_demo_runs():
    assert parse_run((), {}) == build_run("demo")


def test_values_keep_their_text_and_convert_by_the_fields_type():
    run = parse_run((), {
        "workdir": "2024_01", "optim.lr": "3e-4", "compile": "True", "seed": "7", "data.crop_scale": "0.5,1",
        "losses.vitkd.blocks": "(1,2)", "student.model_args": '{"depth": 3}', "eval_every_epochs": "0.5",
    })  # fmt: skip
    assert run.workdir == "2024_01" and run.optim.lr == 3e-4 and run.compile is True and run.seed == 7
    assert run.data.crop_scale == (0.5, 1.0) and run.losses.vitkd.blocks == (1, 2)
    assert run.student.model_args == {"depth": 3} and run.eval_every_epochs == 0.5


@pytest.mark.parametrize("flags, message", [
    ({"optim.lrr": "1"}, "--optim.lrr is no option: did you mean optim.lr"),
    ({"recipe": "demoo"}, "--recipe demoo is no recipe: did you mean demo"),
    ({"teacher.placement": "shards"}, "teacher.placement must be one of shard, replica, offload, found 'shards'"),
    ({"optim.lr": "fast"}, "--optim.lr must be a number, found 'fast'"),
    ({"optim.lr": "nan"}, "--optim.lr must be a number, found 'nan'"),
    ({"seed": "1.5"}, "--seed must be a whole number, found '1.5'"),
    ({"compile": "maybe"}, "--compile must be true or false, found 'maybe'"),
    ({"debug": "maybe"}, "--debug must be true or false"),
    ({"data.crop_scale": "1"}, "--data.crop_scale must be numbers with commas"),
    ({"student.model_args": "[1]"}, "--student.model_args must be a JSON object"),
    ({"recipe": "demo_plain", "teacher.placement": "shard"}, "cannot be set: this recipe has no teacher"),
    ({"recipe": "demo_plain", "losses.nkd.weight": "1"}, "losses.nkd needs a teacher"),
    ({"losses.nkd.weight": "0", "losses.vitkd.weight": "0"}, "a teacher must be used by kd, nkd or vitkd"),
    ({"losses.ce.weight": "0", "recipe": "demo_plain"}, "at least one term"),
    ({"teacher.checkpoint": "random"}, "for --debug runs only"),
    ({"global_batch_size": "0"}, "global_batch_size must be positive, found 0"),
    ({"augment.rand_augment": "m9"}, "augment.rand_augment must start with rand-"),
    ({"augment.rand_augment": "rand-m9-q3"}, "augment.rand_augment"),
    ({"augment.mix_mode": "pair"}, "augment.mix_mode must be one of batch, element"),
    ({"data.on_bad": "ignore"}, "data.on_bad must be one of stop, skip"),
    ({"optim.ema_decay": "1"}, r"optim.ema_decay must be in \[0, 1\), found 1.0"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_key_and_value(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_run((), flags)


def test_a_word_without_dashes_is_refused():
    with pytest.raises(ValueError, match="every argument must be a --flag, found 'demo'"):
        parse_run(("demo",), {})


def test_the_launchers_local_rank_is_no_option_of_ours_and_no_error(monkeypatch, capsys):
    for words in (["--local_rank=1", "pack", "--help"], ["pack", "--local-rank=1", "--help"]):
        monkeypatch.setattr("sys.argv", ["vitkd-ds", *words])
        main()
        assert capsys.readouterr().out.startswith("Write ")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("debug", [False, True])
def test_every_recipe_is_a_valid_run_with_the_same_augmentation_in_its_debug_size(recipe, debug):
    check_run(build_run(recipe, debug=debug))
    assert build_run(recipe, debug=debug).augment == build_run(recipe).augment


def test_the_paper_recipes_are_the_papers():
    run = build_run("deit_base_from_deit3_large")
    assert (run.epochs, run.global_batch_size, run.optim.lr, run.optim.weight_decay) == (300, 1024, 1e-3, 0.05)
    assert (run.optim.warmup_epochs, run.optim.min_lr, run.optim.clip_grad_norm) == (20, 1e-5, 5.0)
    assert (run.losses.vitkd.alpha, run.losses.vitkd.beta, run.losses.vitkd.mask_ratio) == (3e-5, 3e-6, 0.5)
    assert (run.losses.nkd.gamma, run.losses.nkd.temperature, run.losses.ce.label_smoothing) == (1.0, 1.0, 0.1)
    augment, data = run.augment, run.data
    assert (augment.rand_augment, augment.random_erasing, augment.repeats) == ("rand-m9-mstd0.5-inc1", 0.25, 1)
    assert (augment.mixup_alpha, augment.cutmix_alpha, augment.mix_mode) == (0.8, 1.0, "batch")
    assert (augment.interpolation, data.interpolation, data.val_crop_fraction) == ("bicubic", "bicubic", 0.875)
    assert run.student.drop_path_rate == 0.1 and run.optim.ema_decay == pytest.approx(1 - 4e-5)
    tiny = build_run("deit_tiny_from_deit3_small")
    assert tiny.student.drop_path_rate == 0 and tiny.optim.ema_decay == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_survives_config_json(recipe):
    run = build_run(recipe)
    assert from_dict(Run, json.loads(json.dumps(as_dict(run)))) == run


def test_a_stored_run_of_another_version_is_refused():
    stored = as_dict(build_run("demo"))
    stored["optim"]["momentum"] = 0.9
    with pytest.raises(ValueError, match=r"OptimConfig must have exactly its own fields, found unknown \['momentum'\]"):
        from_dict(Run, stored)


def test_every_field_can_be_set_from_its_own_text():
    run = build_run("deit_base_from_deit3_large", debug=True)
    for key, declared in field_types(run).items():
        value = run
        for part in key.split("."):
            value = getattr(value, part)
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        assert convert(text, declared, key) == value
        assert apply_overrides(run, {key: text}) == run


def test_runs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_run("demo").seed = 1
