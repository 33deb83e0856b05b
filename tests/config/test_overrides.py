"""Text to fields, JSON to a run, and checks across fields."""

import dataclasses
import json

import pytest

from vitkd_ds.config.losses import LossesConfig, NKDTerm, ViTKDTerm
from vitkd_ds.config.overrides import apply_overrides, from_dict, settings_of
from vitkd_ds.config.run import Run, as_dict
from vitkd_ds.recipes import build_run


def test_every_field_can_be_set_from_its_own_text():
    run = build_run("deit_base_from_deit3_large", debug=True)
    for key, _, _, value, _ in settings_of(Run, run):
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        assert apply_overrides(run, {key: text}) == run


@pytest.mark.parametrize("text, mode", [("on", "default"), ("True", "default"), ("0", "off"), ("reduce-overhead",) * 2])
def test_a_choice_that_used_to_be_a_boolean_accepts_the_old_values(text, mode):
    stored = as_dict(build_run("demo"))
    assert apply_overrides(build_run("demo"), {"compile": text}).compile == mode
    assert from_dict(Run, stored | {"compile": True}).compile == "default"
    assert from_dict(Run, stored | {"compile": False}).compile == "off"


def test_a_stored_number_keeps_its_type_and_stored_text_is_converted():
    stored = json.loads(json.dumps(as_dict(build_run("demo"))))
    stored["optim"] |= {"lr": "3e-4", "betas": ["0.8", 0]}
    run = from_dict(Run, stored)
    assert type(run.epochs) is int and run.optim.lr == 3e-4 and repr(run.optim.betas) == "(0.8, 0)"


def test_runs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_run("demo").seed = 1


def test_blocks_are_tapped_only_if_vitkd_is_on():
    assert LossesConfig(vitkd=ViTKDTerm(weight=1, blocks=(1, 3))).needs.tapped("teacher") == (1, 3)
    assert LossesConfig(nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(blocks=(1, 3))).needs.tapped("teacher") is None
