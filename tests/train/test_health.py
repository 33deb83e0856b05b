"""Warnings about a term that dominates the others, and about clipping at every step."""

import logging
from dataclasses import replace

import pytest

from tests.conftest import run_several
from vitkd_ds.recipes import build_run
from vitkd_ds.train.health import Health
from vitkd_ds.train.schedule import loss_weights_at


def said_of(caplog, steps, *, norms=None, parts=None, run=None):
    """Warnings over some steps: gradient norms, and terms in a log line every 10 steps, as functions of the step."""
    caplog.clear()
    run = run or build_run("demo")
    health = Health(run, total_steps=1000)  # so that the patience is 200
    with caplog.at_level(logging.WARNING, "vitkd_ds"):
        for step in range(1, steps + 1):
            health.observe_step(step, norms(step) if norms else 0.0)
            if parts and step % 10 == 0:
                values = parts(step)
                health.observe_terms(step, values, {"ce": 1.0, "nkd": 1.0, "vitkd": 2.0})
    return [record.getMessage() for record in caplog.records]


def terms(mimic, other=1.0):
    return {"total": 2 * other + 2 * mimic, "ce": other, "nkd": other, "vitkd_mimic": mimic, "lr": 99.0}


def test_a_balanced_term_is_judged_after_its_factor(caplog):
    def balanced(factor):
        return {"total": 2 + 2 * factor * 10, "ce": 1.0, "nkd": 1.0, "vitkd_mimic": 10.0, "balance_vitkd": factor}

    assert not said_of(caplog, 500, parts=lambda step: balanced(0.1))
    (said,) = said_of(caplog, 500, parts=lambda step: balanced(2.0))
    assert said.startswith("vitkd_mimic contributes 40 to the total loss of 42, ")


def test_clipping_is_reported_once_after_acting_on_every_step_for_long(caplog):
    (said,) = said_of(caplog, 500, norms=lambda step: 7.0)
    assert "every gradient of the last 200 steps was clipped (norm 7 now, optim.clip_grad_norm 5)" in said
    assert not said_of(caplog, 200, norms=lambda step: 7.0)
    assert not said_of(caplog, 900, norms=lambda step: 7.0 if step % 150 else 5.0)
    run = build_run("demo")
    unclipped = replace(run, optim=replace(run.optim, clip_grad_norm=0))
    assert not said_of(caplog, 500, norms=lambda step: 7.0, run=unclipped)


@pytest.mark.parametrize("mimic, is_said", [(3.9, False), (4.1, True)])  # out of 2 + 2 x 4 = 10, so 80 %
def test_a_term_that_dominates_the_total_is_named_with_its_weight_option(caplog, mimic, is_said):
    said = said_of(caplog, 500, parts=lambda step: terms(mimic))
    assert len(said) == is_said
    if said:
        assert "vitkd_mimic contributes 8.2 to the total loss of 10.2" in said[0]
        assert "--losses.vitkd.alpha" in said[0]


def test_an_only_term_may_be_the_whole_total_and_a_break_resets_the_count(caplog):
    assert not said_of(caplog, 500, parts=lambda step: {"total": 2.0, "ce": 2.0})
    assert not said_of(caplog, 900, parts=lambda step: terms(4.1 if step % 150 else 1.0))
    (said,) = said_of(caplog, 500, parts=lambda step: terms(0.1) | {"total": 50.0, "nkd": 45.0})
    assert "nkd contributes 45 to the total loss of 50" in said and "Lower --losses.nkd.weight" in said


def test_weights_are_taken_at_the_step():
    run = build_run("demo")
    losses = replace(run.losses, nkd=replace(run.losses.nkd, weight=2.0, schedule="linear"))
    assert loss_weights_at(5, replace(run, losses=losses), 11) == {"ce": 1, "nkd": 1.0, "vitkd": 1}


def test_a_run_monitors_its_steps_and_terms(tmp_path, demo_cache):
    command = [
        "--recipe=demo", "--debug", "--max_steps=70", f"--workdir={tmp_path / 'run'}", "--eval_every_epochs=0",
        "--global_batch_size=8", "--losses.vitkd.alpha=1", "--optim.clip_grad_norm=1e-3", "--log_every_steps=2",
    ]  # fmt: skip
    said = run_several(2, tmp_path / "commands", [command])[0]["said"]
    assert said.count("every gradient of the last 50 steps was clipped") == 1
    assert said.count("the other terms hardly count. Lower --losses.vitkd.alpha") == 1
