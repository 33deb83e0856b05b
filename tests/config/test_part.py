"""Settings classes: values at and just outside a limit, and error messages."""

from dataclasses import field, replace
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval
from pydantic.dataclasses import dataclass

from vitkd_ds.config.help import field_help
from vitkd_ds.config.overrides import apply_overrides, from_dict, settings_of
from vitkd_ds.config.part import Number, Part, what
from vitkd_ds.recipes import build_run


@dataclass(frozen=True)
class Example(Part, place="a.b"):
    """Fields with each kind of limit."""

    name: str
    rate: Annotated[Number, Gt(0)] = 1.0
    steps: Annotated[int, Ge(2)] = 2
    part: Annotated[Number, Interval(ge=0, lt=1)] = 0
    rest: Annotated[Number, Interval(gt=0, le=0.5)] = 0.5
    mode: Literal["x", "y"] = "x"
    pair: tuple[Number, Number] = (0, 1)
    free: Number = -1


@dataclass(frozen=True)
class Group(Part, place=""):
    """A settings class that maps names to parts."""

    examples: dict[str, Example] = field(default_factory=dict)
    """Parts by name."""


def test_words_and_limits_come_from_the_annotation():
    assert {name: what(each) for name, each in Example.__pydantic_fields__.items()} == {
        "name": "text", "rate": "a number above 0", "steps": "a whole number, 2 or more", "part": "a number in [0, 1)",
        "rest": "a number in (0, 0.5]", "mode": "one of x, y", "pair": "numbers separated by commas, such as 0.08,1",
        "free": "a number",
    }  # fmt: skip


@pytest.mark.parametrize("wrong, message", [
    ({"rate": -1}, "a.b.rate must be a number above 0, got -1. Change it in the recipe or with --a.b.rate."),
    ({"rate": float("nan")}, "a.b.rate must be a number above 0, got nan"),
    ({"free": float("inf")}, "a.b.free must be a number, got inf"),
    ({"rate": "1"}, "a.b.rate must be a number above 0, got '1'"),
    ({"steps": 1}, "a.b.steps must be a whole number, 2 or more, got 1"),
    ({"steps": 2.0}, "a.b.steps must be a whole number, 2 or more, got 2.0"),
    ({"part": True}, "a.b.part must be a number in [0, 1), got True"),
    ({"mode": "z"}, "a.b.mode must be one of x, y, got 'z'"),
    ({"pair": (1,)}, "a.b.pair must be numbers separated by commas, such as 0.08,1, got (1,)"),
    ({"pair": (1, "2")}, "a.b.pair must be numbers separated by commas, such as 0.08,1, got '2'"),
    ({"stps": 3}, "a.b.stps is not a setting of this version. Remove it, or use steps, the most similar name."),
])  # fmt: skip
def test_settings_are_checked_on_creation_and_replacement(wrong, message):
    for make in (lambda: Example("n", **wrong), lambda: replace(Example("n"), **wrong)):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match="a.b.name is missing. Set it in the recipe or with --a.b.name."):
        Example(**wrong | {"stps": 3})


def test_an_integer_stays_an_integer_in_a_float_field():
    assert (repr(Example("n", rate=20).rate), repr(Example("n", rate=2e1).rate)) == ("20", "20.0")


def test_a_mapping_of_settings_is_addressed_extended_and_listed():
    group = Group({"one": Example("n", rate=2)})
    changed = apply_overrides(group, {"examples.one.rate": "3", "examples.two.name": "m", "examples.two.pair": "1,2"})
    assert changed == Group({"one": Example("n", rate=3.0), "two": Example("m", pair=(1.0, 2.0))})
    assert from_dict(Group, {"examples": {"one": {"name": "n", "rate": 2}}}) == group
    keys = [setting.key for setting in settings_of(Group, changed)]
    assert keys == [f"examples.{one}.{name}" for one in ("one", "two") for name in Example.__pydantic_fields__]
    assert "--examples.one.rate=2 " in field_help(group, "examples.one", width=200)
    assert "--examples.NAME.rate=1.0 " in field_help(Group(), "examples", width=200)
    for options, message in {
        ("examples.two.rate", "3"): "examples.two.name is missing. Set it in the recipe or with --examples.two.name.",
        ("examples.one.rate", "0"): "examples.one.rate must be a number above 0, got '0'",
        ("examples.one.rat", "3"): r"--examples.one.rat is not an option: did you mean --examples.one.rate or",
        ("examples.one", "3"): "--examples.one is not an option",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            apply_overrides(group, dict([options]))


@pytest.mark.parametrize("key, taken, refused", [
    ("data.crop_scale", ["0.1,1", "1,1"], ["0,1", "0.5,1.1", "0.5,0.4"]), ("data.crop_ratio", ["1,1"], ["0,1", "2,1"]),
    ("data.num_classes", ["0", "2"], ["1", "-1"]), ("data.val_crop_fraction", ["0.25", "1"], ["0.2", "1.1"]),
    ("optim.betas", ["0,0", "0.9,0.99"], ["0.9,1", "-0.1,0.9"]), ("optim.lr", ["1e-9"], ["0", "inf", "1_0"]),
    ("student.drop_path_rate", ["0"], ["1"]), ("augment.repeats", ["1"], ["0"]), ("seed", ["0"], ["-1", "1_000"]),
    ("checkpoint.keep_last", ["1"], ["0"]), ("checkpoint.max_failures", ["1"], ["0"]), ("epochs", ["0.1"], ["0"]),
    ("global_batch_size", ["1"], ["0"]), ("log_every_steps", ["1"], ["0"]), ("teacher.keep_tokens", ["0"], ["-1"]),
    ("losses.vitkd.mask_ratio", ["0.1"], ["0", "1"]), ("losses.vitkd.blocks", ["0,3"], ["0", "0,1,2"]),
    ("losses.kd.temperature", ["0.1"], ["0"]), ("losses.ce.label_smoothing", ["0"], ["1"]),
    ("losses.kd.schedule", ["linear"], ["step"]), ("augment.mix_mode", ["element"], ["pair"]),
    ("augment.interpolation", ["random"], ["box"]), ("data.interpolation", ["bilinear"], ["box"]),
    ("data.backend", ["torchvision"], ["dali"]), ("data.order", ["quasi_random"], ["sorted"]),
    ("data.on_bad", ["skip"], ["ignore"]), ("timeout_minutes", ["0.1"], ["0"]), ("losses.vitkd.alpha", ["0"], ["-1"]),
    ("optim.ema_decay", ["0"], ["1"]), ("optim.warmup_fraction", ["0"], ["1"]),
])  # fmt: skip
def test_values_at_a_limit_are_accepted_and_just_outside_rejected(key, taken, refused):
    for text in taken:
        apply_overrides(build_run("demo"), {key: text})
    for text in refused:
        with pytest.raises(ValueError, match=f"{key} must "):
            apply_overrides(build_run("demo"), {key: text})
