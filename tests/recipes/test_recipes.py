"""Every recipe is a valid run at full and debug size; a stored run is a recipe too."""

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
    assert (*found, run.teachers["teacher"].checkpoint) == sizes
    assert run.debug and run.compile == "off" and run.log_every_steps == 1
    assert (run.data.train, run.data.val, run.data.num_classes) == ("demo", "demo", 10)


def test_a_recipe_without_labels_has_none_in_its_debug_size():
    run = build_run("demo_label_free", debug=True)
    assert (run.data.train, run.data.num_classes, run.data.labels) == ("demo", 0, "ignore")
    assert (
        run.losses.active().keys() == {"feature", "relation"}
        and run.teachers["teacher"] == build_run("demo").teachers["teacher"]
    )


def test_a_student_of_another_size_has_the_same_rival_recipe():
    tiny, small = (build_run(f"deit_{size}_vkd_regnety160") for size in ("tiny", "small"))
    assert replace(small, recipe=tiny.recipe, workdir=tiny.workdir, student=tiny.student) == tiny
    assert small.student.model == "deit_small_patch16_224" and tiny.student.model == "deit_tiny_patch16_224"


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
def test_a_stored_run_resumes_automatically_and_warns_if_it_started_elsewhere(tmp_path, caplog, resume, warnings):
    folder = store(tmp_path / "x", replace(build_run("demo"), resume=resume, extend=True))
    with caplog.at_level(logging.WARNING):
        assert build_run(str(folder)) == build_run("demo")
    assert caplog.text.count("Pass --resume to start from there again") == warnings
    assert (f"{folder} started from /old/run. " in caplog.text) == bool(warnings)


def broken(path, value):
    """The demo's config.json with the value at a dotted path replaced; a value of ... deletes the key."""
    stored = as_dict(build_run("demo"))
    *parents, name = path.split(".")
    part = reduce(dict.__getitem__, parents, stored)
    part[name] = value
    if value is ...:
        del part[name]
    return json.dumps({"run": stored})


@pytest.mark.parametrize("text, message", [
    (broken("optim.momentum", 0.9), "optim.momentum is not a setting of this version. Remove it, or use "),
    (broken("student.model", ...), "student.model is missing. Set it in the recipe or with --student.model."),
    (broken("optim.lr", "fast"), "optim.lr must be a number above 0, got 'fast'"),
    (broken("optim.lr", None), "optim.lr must be a number above 0, got None"),
    (broken("losses.vitkd.blocks", 1.5), "losses.vitkd.blocks must be two blocks separated by a comma, .*, got 1.5"),
    (broken("teacher.placement", "shards"), "teacher.placement must be one of shard, replica, offload, got 'shards'"),
    (broken("optim", None), "optim must be a JSON object, got None"),
    (broken("losses.kd", 3), "losses.kd must be a JSON object, got 3"),
    (broken("data.train", 3), "data.train must be text, got 3"),
    ("[1]", r"a run must be a JSON object, got \[1\]"),
    ("{", "Expecting"),
])  # fmt: skip
def test_a_file_without_a_run_is_rejected_by_name(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json contains no run of this version: {message}"):
        build_run(str(tmp_path))


def test_an_unknown_recipe_is_rejected():
    with pytest.raises(ValueError, match="no run at runs/none: No such file"):
        build_run("runs/none")
    with pytest.raises(ValueError, match="--recipe  is not a recipe: valid names are"):
        build_run("")
