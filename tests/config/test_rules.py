"""Rules of fields: what holds at and beside the ends, and what a refusal says."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from vitkd_ds.config.overrides import apply_overrides
from vitkd_ds.config.rules import POSITIVE, Part, at_least, rules_of, within
from vitkd_ds.recipes import build_run


@pytest.mark.parametrize("rule, right, wrong", [
    (POSITIVE, [1, 1e-9], [0, -1]), (at_least(2), [2, 3], [1, 1.9, -2]),
    (within("[0, 1)"), [0, 0.5], [1, -0.1, 2, float("nan")]), (within("(0, 1]"), [1, 0.5], [0, 1.1]),
    (within("(0, 1)"), [0.5], [0, 1]), (within("[0.25, 1]"), [0.25, 1, 0.3], [0.2, 1.1]),
])  # fmt: skip
def test_a_rule_holds_for_what_its_words_say(rule, right, wrong):
    assert all(rule.holds(value) for value in right) and not any(rule.holds(value) for value in wrong)


def test_the_words_name_bounds_and_their_meaning():
    assert at_least(0, "off").must == "be 0 (off) or more" and at_least(1).must == "be 1 or more"
    assert within("[0, 1)").must == "be in [0, 1)"


@dataclass(frozen=True)
class Example(Part, place="a.b"):
    """Two fields with a rule, one without."""

    rate: Annotated[float, POSITIVE] = 1.0
    mode: Literal["x", "y"] = "x"
    """Of the mode,
    on two lines."""
    free: float = 0.0


def test_a_part_checks_its_fields_and_names_key_value_and_option():
    assert rules_of(Example).keys() == {"rate", "mode"} and Example(mode="y", free=-1).mode == "y"
    with pytest.raises(ValueError, match="^a.b.rate must be positive, found -1: change it .* with --a.b.rate"):
        Example(rate=-1)
    with pytest.raises(ValueError, match="^a.b.mode must be one of x, y, found 'z'"):
        Example(mode="z")


@pytest.mark.parametrize("key, taken, refused", [
    ("data.crop_scale", ["0.1,1", "1,1"], ["0,1", "0.5,1.1", "0.5,0.4"]), ("data.crop_ratio", ["1,1"], ["0,1", "2,1"]),
    ("data.num_classes", ["0", "2"], ["1", "-1"]), ("data.val_crop_fraction", ["0.25", "1"], ["0.2", "1.1"]),
    ("optim.betas", ["0,0", "0.9,0.99"], ["0.9,1", "-0.1,0.9"]), ("optim.lr", ["1e-9"], ["0", "inf", "1_0"]),
    ("student.drop_path_rate", ["0"], ["1"]), ("augment.repeats", ["1"], ["0"]), ("seed", ["0"], ["-1", "1_000"]),
    ("checkpoint.keep_last", ["1"], ["0"]), ("checkpoint.max_failures", ["1"], ["0"]), ("epochs", ["0.1"], ["0"]),
    ("global_batch_size", ["1"], ["0"]), ("log_every_steps", ["1"], ["0"]), ("teacher.keep_tokens", ["0"], ["-1"]),
    ("losses.vitkd.mask_ratio", ["0.1"], ["0", "1"]), ("losses.vitkd.blocks", ["0,3"], ["0", "0,1,2"]),
    ("losses.kd.temperature", ["0.1"], ["0"]), ("losses.ce.label_smoothing", ["0"], ["1"]),
])  # fmt: skip
def test_values_at_a_bound_are_taken_and_beside_it_refused(key, taken, refused):
    for text in taken:
        apply_overrides(build_run("demo"), {key: text})
    for text in refused:
        with pytest.raises(ValueError, match=f"{key} must "):
            apply_overrides(build_run("demo"), {key: text})
