"""Learning rate, loss weights, steps and micro-batches against hand-computed values."""

import math
from dataclasses import replace

import pytest

from vitkd_ds.config.run import OptimConfig
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import BatchSplit, Schedule, loss_weight_at, lr_at, make_schedule, split_batch

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


def test_epochs_become_steps_and_never_none():
    run = build_run("demo_teacher")  # 18 epochs, one of warm-up, evaluated every second one
    assert make_schedule(run, steps_per_epoch=50, accumulation_steps=2) == Schedule(50, 900, 50, 100, 50, 2)
    short = replace(run, epochs=0.001, eval_every_epochs=0.001)
    assert make_schedule(short, steps_per_epoch=50, accumulation_steps=1) == Schedule(50, 1, 1, 1, 50, 1)
    assert make_schedule(build_run("demo", debug=True), steps_per_epoch=50, accumulation_steps=1).total_steps == 4


@pytest.mark.parametrize("global_batch_size, world_size, limit, split", [
    (128, 2, 64, (64, 1)),
    (48, 1, 16, (16, 3)),
    (48, 2, 16, (12, 2)),  # 16 does not divide the share of 24
    (7, 1, 4, (1, 7)),
    (8, 8, 100, (1, 1)),
    (1, 1, 1, (1, 1)),
])  # fmt: skip
def test_ranks_share_a_global_batch_in_the_largest_micro_batches_that_fit(global_batch_size, world_size, limit, split):
    assert split_batch(global_batch_size, world_size=world_size, limit=limit) == BatchSplit(*split)


def test_ranks_that_cannot_share_a_global_batch_are_told_which_can():
    with pytest.raises(ValueError, match="found 12 and 5 ranks: use 1, 2, 3, 4, 6, 12 ranks, or change --global_batch"):
        split_batch(12, world_size=5, limit=4)


def test_the_end_is_saved_and_evaluated():
    assert [step for step in range(1, 102) if SCHEDULE.is_save_step(step)] == [*range(10, 101, 10), 101]
    assert [step for step in range(1, 102) if SCHEDULE.is_eval_step(step)] == [*range(10, 101, 10), 101]
