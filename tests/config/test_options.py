"""Consequences of options: models described by folders, arguments of other models, terms without a teacher."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.config.test_run_folder import make_student
from vitkd_ds.config.check import check_run
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.overrides import apply_overrides
from vitkd_ds.config.run import as_dict
from vitkd_ds.config.term import terms_of_a_teacher
from vitkd_ds.recipes import build_run

DEMO, PLAIN = build_run("demo"), build_run("demo_plain")


@pytest.mark.parametrize("recipe", ["demo", "deit_tiny_from_deit3_small", "images"])
def test_without_a_teacher_only_the_terms_that_need_one_are_off(recipe):
    run = build_run(recipe)
    plain = apply_options(run, {"teacher": "none", "data.train": "t", "data.val": "v"})
    check_run(plain)
    assert not plain.teachers and list(plain.losses.active()) == ["ce"]
    assert all(getattr(plain.losses, name).weight == 0 for name in terms_of_a_teacher(plain.losses))
    assert (plain.augment, plain.optim, plain.losses.ce) == (run.augment, run.optim, run.losses.ce)


def test_the_demo_without_its_teacher_learns_as_the_plain_demo_does():
    plain = replace(apply_options(DEMO, {"teacher": "none"}), recipe=PLAIN.recipe, workdir=PLAIN.workdir)
    off = {f"losses.vitkd.{name}": str(getattr(DEMO.losses.vitkd, name)) for name in ("alpha", "beta")}
    assert plain == apply_overrides(PLAIN, off)


def test_any_teacher_option_gives_a_plain_recipe_a_teacher():
    options = {"teacher.model": "deit3_small_patch16_224", "teacher.placement": "replica", "losses.nkd.weight": "2"}
    run = apply_options(PLAIN, options)
    check_run(run)
    own = DEMO.teachers["teacher"]
    assert run.teachers["teacher"] == replace(own, model_args={}, checkpoint="hub", placement="replica")
    assert run.losses.nkd.weight == 2


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_changed_model_does_not_inherit_arguments_and_says_so(caplog, role):
    before = DEMO.models[role]
    with caplog.at_level(logging.INFO, "vitkd_ds"):
        changed = apply_options(DEMO, {f"{role}.model": "vit_tiny_patch16_224"}).models[role]
    assert changed == replace(before, model="vit_tiny_patch16_224", model_args={})
    assert f"{role}.model=vit_tiny_patch16_224 replaces recipe demo's {before.model}" in caplog.text
    caplog.clear()
    given = {f"{role}.model": "vit_tiny_patch16_224", f"{role}.model_args": '{"depth": 3}'}
    assert apply_options(DEMO, given).models[role].model_args == {"depth": 3}
    assert apply_options(DEMO, {f"{role}.model": before.model}).models[role] == before
    assert not caplog.text


@pytest.mark.parametrize("role, key", [("student", "init"), ("teacher", "checkpoint")])
def test_a_folder_gives_weights_model_and_arguments(tmp_path, role, key):
    args = {"depth": 2, "num_classes": 3, "img_size": 32, "pretrained_cfg_overlay": {}}
    make_student(tmp_path / "run", model="vit_small_patch16_224", args=args)
    expected = replace(
        DEMO.models[role], model="vit_small_patch16_224", model_args={"depth": 2},
        **{key: str(tmp_path / "run" / "student.safetensors")},
    )  # fmt: skip
    for path in (tmp_path / "run", tmp_path / "run" / "student.safetensors"):
        run = apply_options(DEMO, {f"{role}.{key}": str(path)})
        assert run.models[role] == expected
        assert apply_options(run, {}) == run, "a stored run stays as it is"
    options = {f"{role}.{key}": str(tmp_path / "run"), f"{role}.model": "vit_small_patch16_224"}
    assert apply_options(DEMO, options).models[role] == expected
    more = apply_options(DEMO, options | {f"{role}.model_args": '{"depth": 2, "qk_norm": true}'}).models[role]
    assert more == replace(expected, model_args={"depth": 2, "qk_norm": True})
    with pytest.raises(ValueError, match=f"{role}.model=vit_tiny_patch16_224 contradicts .*, which holds vit_s"):
        apply_options(DEMO, options | {f"{role}.model": "vit_tiny_patch16_224"})
    with pytest.raises(ValueError, match="is not a run, checkpoint or exported student"):
        apply_options(DEMO, {f"{role}.{key}": str(tmp_path)})


def test_a_plain_recipe_takes_the_teacher_of_a_folder(tmp_path):
    make_student(tmp_path, model="vit_small_patch16_224", args={"depth": 2})
    run = apply_options(build_run("images"), {"teacher.checkpoint": str(tmp_path), "data.train": "t", "data.val": "v"})
    check_run(run)
    teacher = run.teachers["teacher"]
    assert teacher.model == "vit_small_patch16_224" and teacher.model_args == {"depth": 2}
    assert run.losses.vitkd.scaled and run.losses.nkd.weight == run.losses.vitkd.weight == 1


def test_a_file_of_weights_without_a_description_keeps_the_named_model_and_must_be_there(tmp_path):
    weights = tmp_path / "weights.pth"
    for role, key in (("teacher", "checkpoint"), ("student", "init")):
        with pytest.raises(
            ValueError, match=f"{role}.{key}: no weight file, run, checkpoint or export at {weights}. Ch"
        ):
            apply_options(DEMO, {f"{role}.{key}": str(weights)})
    weights.touch()
    run = apply_options(DEMO, {"teacher.checkpoint": str(weights)})
    assert run.teachers["teacher"] == replace(DEMO.teachers["teacher"], checkpoint=str(weights))
    weights.unlink()
    assert apply_options(run, {}) == run, "a finished run no longer needs it"


def test_a_term_that_needs_a_missing_teacher_is_rejected_with_the_option_that_disables_it():
    with pytest.raises(
        ValueError, match="--losses.nkd.weight=1 and --teacher none exclude each other. Omit one of them."
    ):
        apply_options(DEMO, {"teacher": "none", "losses.nkd.weight": "1"})
    assert apply_options(DEMO, {"teacher": "none", "losses.nkd.weight": "0"}) == apply_options(
        DEMO, {"teacher": "none"}
    )


def test_a_started_run_keeps_its_teacher_checkpoint_although_that_run_trained_on(tmp_path, caplog):
    teacher, workdir = tmp_path / "teacher", tmp_path / "run"
    options = {"teacher.checkpoint": str(teacher), "workdir": str(workdir)}

    def reach(step):
        make_student(teacher / "checkpoints" / f"step{step:08d}", model="vit_small_patch16_224", args={"depth": 2})
        (teacher / "checkpoints" / "latest").write_text(f"step{step:08d}")
        return str(teacher / "checkpoints" / f"step{step:08d}" / "student.safetensors")

    first = reach(4)
    begun = apply_options(DEMO, options)
    assert begun.teachers["teacher"].checkpoint == first
    (workdir / "checkpoints" / "step00000001").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps({"run": as_dict(begun)}))
    second = reach(8)
    for given in (teacher, teacher / "latest"):
        with caplog.at_level(logging.INFO, "vitkd_ds"):
            assert apply_options(DEMO, options | {"teacher.checkpoint": str(given)}) == begun
        assert (
            f"keeping teacher.checkpoint={first}, with which {workdir} was started, although {given} is now"
            in caplog.text
        )
    assert apply_options(DEMO, options | {"workdir": str(tmp_path / "new")}).teachers["teacher"].checkpoint == second
    assert apply_options(DEMO, options | {"resume": "none"}).teachers["teacher"].checkpoint == second
    named = apply_options(DEMO, options | {"teacher.checkpoint": str(Path(second).parent)})
    assert named.teachers["teacher"].checkpoint == second, "a named step is used as given"
    make_student(teacher, model="vit_small_patch16_224", args={"depth": 2})
    (teacher / "done").touch()
    assert apply_options(DEMO, options) == begun
    Path(first).unlink()
    with pytest.raises(
        ValueError, match=f"{workdir} was started with teacher.checkpoint={first}, which no longer exists"
    ):
        apply_options(DEMO, options)
    (workdir / "done").touch()
    assert apply_options(DEMO, options) == begun, "a finished run no longer needs it"
