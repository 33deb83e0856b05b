"""Every recipe is a valid run, in full and in its debug size; a stored run is a recipe too."""

import json
import logging
from dataclasses import replace
from functools import reduce

import pytest

from vitkd_ds.config.check import check_run
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.recipes import RECIPES, build_run


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "images"])
def test_every_recipe_is_a_valid_run_with_the_same_augmentation_in_its_debug_size(recipe):
    run, small = build_run(recipe), build_run(recipe, debug=True)
    check_run(run)
    check_run(small)
    assert small.augment == run.augment and small.workdir == f"{run.workdir}_debug" == f"runs/{recipe}_debug"
    assert from_dict(Run, json.loads(json.dumps(as_dict(run)))) == run


@pytest.mark.parametrize("recipe, sizes", [
    ("demo", (48, 16, 4, 64, "demo")),
    ("deit_base_from_deit3_large", (8, 2, 2, 8, "random")),
])  # fmt: skip
def test_the_debug_size_is_a_few_steps_on_the_packaged_images(recipe, sizes):
    run = build_run(recipe, debug=True)
    found = (run.global_batch_size, run.micro_batch_size_per_gpu, run.max_steps, run.data.max_val_images)
    assert (*found, run.teacher.checkpoint) == sizes
    assert run.debug and run.compile == "off" and run.log_every_steps == 1
    assert (run.data.train, run.data.val, run.data.num_classes) == ("demo", "demo", 10)


def test_a_recipe_without_labels_has_none_in_its_debug_size():
    run = build_run("demo_label_free", debug=True)
    assert (run.data.train, run.data.num_classes, run.data.labels) == ("demo", 0, "ignore")
    assert run.losses.active().keys() == {"feature", "relation"} and run.teacher == build_run("demo").teacher


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


def test_the_rivals_recipes_are_the_published_ones():
    soft, wttm, vkd = (build_run(f"deit_tiny_{name}") for name in ("soft_kd", "wttm_vitkd", "vkd_regnety160"))
    weights = {name: term.weight for name, term in soft.losses.active().items()}
    assert weights == {"ce": 0.1, "kd": 0.9} and soft.losses.kd.temperature == 1 and soft.student.drop_path_rate == 0
    assert soft.teacher.model.startswith("cait_s24_224") and soft.global_batch_size == 2048
    assert (soft.augment.mixup_alpha, soft.augment.cutmix_alpha, soft.augment.repeats) == (0, 0, 3)
    assert (soft.optim.lr, soft.optim.lr_batch_size, soft.optim.warmup_epochs, soft.optim.clip_grad_norm) == (
        5e-4, 512, 5, 0,
    )  # fmt: skip
    assert {name: term.weight for name, term in wttm.losses.active().items()} == {"ce": 1, "wttm": 1.6, "vitkd": 1}
    assert wttm.teacher == build_run("deit_tiny_from_deit3_small").teacher and wttm.losses.wttm.weighted
    assert {name: term.weight for name, term in vkd.losses.active().items()} == {"ce": 1, "kd": 1, "vkd": 1}
    optim, augment = vkd.optim, vkd.augment
    assert (optim.lr, optim.lr_batch_size, vkd.global_batch_size, optim.clip_grad_norm) == (5e-4, 512, 512, 0)
    assert (optim.warmup_epochs, optim.min_lr, optim.weight_decay) == (0, 5e-6, 0.05)
    assert augment.three_augment and augment.color_jitter == 0.3 and not augment.rand_augment
    assert (augment.random_erasing, augment.repeats, vkd.losses.ce.label_smoothing) == (0, 1, 0.1)
    small = build_run("deit_small_vkd_regnety160")
    assert replace(small, recipe=vkd.recipe, workdir=vkd.workdir, student=vkd.student) == vkd
    assert small.student.model == "deit_small_patch16_224" and vkd.student.model == "deit_tiny_patch16_224"


def store(folder, run):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"run": as_dict(run), "world_size": 2}))
    return folder


def test_a_run_folder_its_config_and_a_bare_run_are_recipes(tmp_path, monkeypatch):
    run = replace(build_run("demo", debug=True), seed=3, workdir="runs/far")
    folder = store(tmp_path / "x", run)
    (tmp_path / "bare").write_text(json.dumps(as_dict(run)))
    monkeypatch.chdir(tmp_path)
    for path in (folder, folder / "config.json", "./x", "x", "bare"):
        assert build_run(str(path)) == run
    store(tmp_path / "demo", build_run("demo_plain"))
    assert build_run("demo").recipe == "demo" and build_run("./demo").recipe == "demo_plain"  # the name wins


@pytest.mark.parametrize("resume, warnings", [("/old/run", 1), ("none", 0)])
def test_a_stored_run_resumes_automatically_and_warns_where_it_had_begun_elsewhere(tmp_path, caplog, resume, warnings):
    folder = store(tmp_path / "x", replace(build_run("demo"), resume=resume, extend=True))
    with caplog.at_level(logging.WARNING):
        assert build_run(str(folder)) == build_run("demo")
    assert caplog.text.count("give --resume to begin there again") == warnings
    assert (f"{folder} began at /old/run: " in caplog.text) == bool(warnings)


def broken(path, value):
    """config.json of the demo with the value at a dotted path replaced; a value of ... deletes the key."""
    stored = as_dict(build_run("demo"))
    *parents, name = path.split(".")
    part = reduce(dict.__getitem__, parents, stored)
    part[name] = value
    if value is ...:
        del part[name]
    return json.dumps({"run": stored})


@pytest.mark.parametrize("text, message", [
    (broken("optim.momentum", 0.9), "optim.momentum is no setting of this version. Remove it, or use the nearest, "),
    (broken("student.model", ...), "student.model is missing. Set it in the recipe or with --student.model."),
    (broken("optim.lr", "fast"), "optim.lr must be a number above 0, got 'fast'"),
    (broken("optim.lr", None), "optim.lr must be a number above 0, got None"),
    (broken("losses.vitkd.blocks", 1.5), "losses.vitkd.blocks must be two blocks with a comma, .*, got 1.5"),
    (broken("teacher.placement", "shards"), "teacher.placement must be one of shard, replica, offload, got 'shards'"),
    (broken("optim", None), "optim must be a JSON object, got None"),
    (broken("losses.kd", 3), "losses.kd must be a JSON object, got 3"),
    (broken("data.train", 3), "data.train must be text, got 3"),
    ("[1]", r"a run must be a JSON object, got \[1\]"),
    ("{", "Expecting"),
])  # fmt: skip
def test_a_file_that_holds_no_run_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json holds no run of this version: {message}"):
        build_run(str(tmp_path))


def test_what_is_no_recipe_is_refused():
    with pytest.raises(ValueError, match="no run at runs/none: No such file"):
        build_run("runs/none")
    with pytest.raises(ValueError, match="--recipe  is no recipe: valid names are"):
        build_run("")
