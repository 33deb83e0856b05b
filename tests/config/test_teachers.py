"""Names of teachers: short options, stored form, and each term's teacher."""

import json
from dataclasses import replace

import pytest

from vitkd_ds.checkpoint.folder import learned_settings
from vitkd_ds.config import teachers
from vitkd_ds.config.check import check_run
from vitkd_ds.config.options import apply_options
from vitkd_ds.config.overrides import from_dict
from vitkd_ds.config.run import Run, TeacherConfig, as_dict
from vitkd_ds.models.build import DEMO_TEACHER
from vitkd_ds.recipes import build_run

DEMO = build_run("demo")
OTHER = {"teachers.other.checkpoint": str(DEMO_TEACHER), "losses.nkd.teacher": "other"}


def test_an_option_adds_a_teacher_to_the_demo_which_a_term_names():
    run = apply_options(DEMO, OTHER | {"teachers.teacher.placement": "replica"})
    check_run(run)
    own = DEMO.teachers["teacher"]
    assert [*run.teachers] == ["teacher", "other"] and run.teachers["teacher"] == replace(own, placement="replica")
    assert run.teachers["other"] == replace(own, checkpoint=str(DEMO_TEACHER)), "its .json names the model"
    assert [*run.losses_of("teacher").active()] == ["vitkd"] and [*run.losses_of("other").active()] == ["nkd"]
    assert run.losses_of("other").needs.logits and not run.losses_of("teacher").needs.logits


@pytest.mark.parametrize(
    "names, key", [([], "teacher"), (["teacher"], "teacher"), (["a"], "teachers"), (["teacher", "a"], "teachers")]
)
def test_a_single_default_teacher_is_stored_as_in_earlier_versions(names, key):
    run = replace(DEMO, teachers={name: TeacherConfig(model=name) for name in names})
    stored = json.loads(json.dumps(as_dict(run)))
    assert {"teacher", "teachers"} & stored.keys() == {key} and "teacher" not in stored["losses"]["nkd"]
    assert list(stored).index(key) == 3, "between student and data, as before"
    again = from_dict(Run, stored)
    assert again.teachers == run.teachers and [*again.teachers] == names
    assert again.losses == from_dict(Run, as_dict(DEMO)).losses
    named = replace(run, losses=replace(run.losses, kd=replace(run.losses.kd, teacher="a")))
    assert from_dict(Run, json.loads(json.dumps(as_dict(named)))).losses.kd.teacher == "a"


def test_where_a_teacher_is_placed_may_change_whatever_its_name():
    runs = [replace(DEMO, teachers={"a": TeacherConfig(model="m", placement=place)}) for place in ("shard", "replica")]
    assert learned_settings(runs[0]) == learned_settings(runs[1])
    assert learned_settings(runs[0])["teachers.a.model"] == "m"


@pytest.mark.parametrize("options, message", [
    (OTHER | {"losses.nkd.teacher": "dino"},
     "losses.nkd.teacher=dino is not a teacher of this run. Set .* to one of teacher, other."),
    ({"losses.nkd.teacher": "dino"}, "losses.nkd.teacher=dino is not a teacher of this run. Set .* to one of teacher."),
    (OTHER | {"losses.nkd.teacher": "teacher"}, "the teacher other is not used.* and teacher=other. Set a"),
    (OTHER | {"teachers.other.fp8": "true"}, "--teachers.other.placement=replica"),
    (OTHER | {"teachers.other.keep_tokens": "4"}, "teachers.other.keep_tokens=4 drops tokens that losses"),
    (OTHER | {"teachers.other.checkpoint": "random"}, "teachers.other.model is not set"),
    (OTHER | {"teachers.a b.model": "x"}, "a teacher's name may contain only letters, digits, - and _, got 'a b'"),
    (OTHER | {"teachers.other.fp9": "true"}, "--teachers.other.fp9 is not an option: did you mean --teachers.other"),
    (OTHER | {"teachers.other.fp8": "maybe"}, "teachers.other.fp8 must be true or false, got 'maybe'"),
    ({"teachers.teacher.fp8": "maybe"}, "teacher.fp8 must be true or false, got 'maybe'.*--teacher.fp8"),
    (OTHER | {"teacher": "none"}, "--teachers.other.checkpoint and --teacher none exclude each other"),
])  # fmt: skip
def test_errors_name_the_teacher_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        check_run(apply_options(DEMO, options))


def test_a_term_without_a_choice_takes_the_only_teacher_whatever_its_name():
    term = DEMO.losses.nkd
    assert (
        teachers.teacher_of(term, ["dino"])
        == "dino"
        == teachers.teacher_of(replace(term, teacher="dino"), ["a", "dino"])
    )
    assert teachers.teacher_of(term, ["a", "teacher"]) == "teacher" == teachers.teacher_of(term, [])
    only = {"teachers.dino.checkpoint": str(DEMO_TEACHER), "losses.kd.weight": "1"}
    run = apply_options(build_run("demo_plain"), only)
    check_run(run)
    assert [*run.losses_of("dino").active()] == ["kd"]
