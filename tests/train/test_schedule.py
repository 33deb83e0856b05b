"""Learning rate, loss weights and plans against hand-computed values."""

import math

import pytest

from vitkd_ds.config.run import OptimConfig
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import Schedule, loss_weight_at, lr_at, make_schedule

SCHEDULE = Schedule(
    steps_per_epoch=10, total_steps=101, warmup_steps=20, eval_every_steps=10, save_every_steps=10, accumulation_steps=1
)
OPTIM = OptimConfig(lr=1e-3, lr_batch_size=1024, min_lr=1e-5, warmup_start_factor=1e-3)


def test_warm_up_starts_at_its_fraction_and_meets_the_peak():
    assert lr_at(0, SCHEDULE, OPTIM, 1024) == pytest.approx(1e-6)
    assert lr_at(10, SCHEDULE, OPTIM, 1024) == pytest.approx(1e-3 * (0.001 + 0.999 * 0.5))
    assert lr_at(20, SCHEDULE, OPTIM, 1024) == pytest.approx(1e-3)


def test_cosine_ends_at_the_minimum_in_the_last_step():
    assert lr_at(60, SCHEDULE, OPTIM, 1024) == pytest.approx(1e-5 + (1e-3 - 1e-5) / 2)
    assert lr_at(100, SCHEDULE, OPTIM, 1024) == pytest.approx(1e-5)


def test_the_peak_scales_with_the_global_batch():
    assert lr_at(20, SCHEDULE, OPTIM, 512) == pytest.approx(5e-4)


@pytest.mark.parametrize("schedule, values", [
    ("constant", [2, 2, 2]), ("linear", [2, 1, 0]), ("cosine", [2, 1, 0]),
])  # fmt: skip
def test_loss_weights_start_whole_and_end_as_scheduled(schedule, values):
    assert [loss_weight_at(step, 2.0, schedule, 101) for step in (0, 50, 100)] == pytest.approx(values)
    quarter = {"constant": 2.0, "linear": 1.5, "cosine": 1 + math.cos(math.pi / 4)}[schedule]
    assert loss_weight_at(25, 2.0, schedule, 101) == pytest.approx(quarter)


def test_a_plan_counts_steps_and_never_none():
    run = build_run("demo_teacher")
    plan = make_schedule(run, steps_per_epoch=50, accumulation_steps=2)
    assert plan.total_steps == round(50 * run.epochs) and plan.save_every_steps == 50
    assert make_schedule(build_run("demo", debug=True), steps_per_epoch=50, accumulation_steps=1).total_steps == 4


def test_the_end_is_saved_and_evaluated():
    assert [step for step in range(1, 102) if SCHEDULE.is_save_step(step)] == [*range(10, 101, 10), 101]
    assert [step for step in range(1, 102) if SCHEDULE.is_eval_step(step)] == [*range(10, 101, 10), 101]
