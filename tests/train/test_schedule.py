"""Learning rate, loss weights, steps and micro-batches against hand-computed values."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import pytest

from vitkd_ds.config.optim import OptimConfig
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import (
    BatchSplit,
    Schedule,
    check_warmup,
    loss_weights_at,
    lr_at,
    make_schedule,
    split_batch,
)

SCHEDULE = Schedule(10, 101, warmup_steps=20, eval_every_steps=10, save_every_steps=10, accumulation_steps=1)
OPTIM = OptimConfig(lr=1e-3, lr_batch_size=1024, min_lr=1e-5, warmup_start_factor=1e-3)


def run_of(global_batch_size):
    return replace(build_run("demo"), optim=OPTIM, global_batch_size=global_batch_size)


@pytest.mark.parametrize("step, batch, expected", [
    (0, 1024, 1e-6), (10, 1024, 1e-3 * (0.001 + 0.999 * 0.5)), (20, 1024, 1e-3), (20, 512, 5e-4),
    (60, 1024, 1e-5 + (1e-3 - 1e-5) / 2), (100, 1024, 1e-5),
])  # fmt: skip
def test_the_rate_warms_up_to_a_peak_that_scales_with_the_batch_and_falls_to_the_minimum(step, batch, expected):
    assert lr_at(step, SCHEDULE, run_of(batch)) == pytest.approx(expected)


@pytest.mark.parametrize("schedule, values", [
    ("constant", [2, 2, 2, 2]), ("linear", [2, 1.5, 1, 0]), ("cosine", [2, 1 + math.cos(math.pi / 4), 1, 0]),
])  # fmt: skip
def test_loss_weights_start_at_full_value_and_end_as_scheduled(schedule, values):
    run = build_run("demo")
    run = replace(run, losses=replace(run.losses, kd=replace(run.losses.kd, weight=2.0, schedule=schedule)))
    assert [loss_weights_at(step, run, 101)["kd"] for step in (0, 25, 50, 100)] == pytest.approx(values)


def test_epochs_become_at_least_one_step():
    run = build_run("demo_teacher")  # 40 epochs, one of warm-up, evaluated every second one
    assert make_schedule(run, steps_per_epoch=50, accumulation_steps=2) == Schedule(50, 2000, 50, 100, 50, 2)
    short = replace(run, epochs=0.001, eval_every_epochs=0.001)
    assert make_schedule(short, steps_per_epoch=50, accumulation_steps=1) == Schedule(50, 1, 1, 1, 50, 1)
    assert make_schedule(build_run("demo", debug=True), steps_per_epoch=50, accumulation_steps=1).total_steps == 4


def test_evaluations_are_at_the_exact_fraction_of_an_epoch_rounded_up():
    run = build_run("demo")
    for percent, steps in itertools.product(range(1, 301), (50, 100, 600, 1251)):
        given = replace(run, eval_every_epochs=percent / 100)
        found = make_schedule(given, steps_per_epoch=steps, accumulation_steps=1).eval_every_steps
        assert found == math.ceil(Fraction(percent, 100) * steps), (percent, steps)
    never = replace(run, eval_every_epochs=0)
    assert make_schedule(never, steps_per_epoch=50, accumulation_steps=1).eval_every_steps == 0


@pytest.mark.parametrize("optim, warmup", [
    ({"warmup_epochs": 0, "warmup_fraction": 0.3}, 6), ({"warmup_epochs": 9}, 19), ({"warmup_epochs": 0}, 0),
])  # fmt: skip
def test_fractional_lengths_become_steps(optim, warmup):
    run = build_run("demo")
    checkpoint = replace(run.checkpoint, every_steps=5)
    run = replace(run, optim=replace(run.optim, **optim), checkpoint=checkpoint, eval_every_epochs=0.5)
    for changes in ({"epochs": 2.7}, {"epochs": 2.7, "max_steps": 100}, {"epochs": 9, "max_steps": 19}):
        found = make_schedule(replace(run, **changes), steps_per_epoch=7, accumulation_steps=1)
        assert found == Schedule(7, 19, warmup, eval_every_steps=4, save_every_steps=5, accumulation_steps=1)


def test_without_a_warm_up_the_first_step_has_the_peak():
    schedule = replace(SCHEDULE, warmup_steps=0)
    assert [lr_at(step, schedule, run_of(1024)) for step in (0, 100)] == pytest.approx([1e-3, 1e-5])


@pytest.mark.parametrize("max_steps, warmup", [
    (1, 0), (2, 1), (5, 1), (24, 2), (60, 6), (100, 10), (101, 100), (300, 100), (1000, 100), (2000, 100),
])  # fmt: skip
def test_a_warm_up_that_would_fill_max_steps_keeps_its_fraction_of_the_run(max_steps, warmup):
    run = replace(build_run("demo"), max_steps=max_steps)  # 20 epochs, two of warm-up
    schedule = make_schedule(run, steps_per_epoch=50, accumulation_steps=1)
    assert (schedule.total_steps, schedule.warmup_steps) == (min(max_steps, 1000), warmup)
    check_warmup(run, schedule)
    tested = make_schedule(replace(run, debug=True), steps_per_epoch=50, accumulation_steps=1)
    assert tested.warmup_steps == min(100, max_steps), "a debug run keeps it"
    optim = replace(run.optim, warmup_epochs=0, warmup_fraction=0.95)
    part = make_schedule(replace(run, optim=optim), steps_per_epoch=50, accumulation_steps=1)
    assert part.warmup_steps == min(part.total_steps - 1, round(0.95 * part.total_steps))


@pytest.mark.parametrize("changes, optim, found", [
    ({"epochs": 1}, {}, r"got 50 of 50 steps \(optim.warmup_epochs=2, 50 steps per epoch, epochs=1\). Lower "
     "--optim.warmup_epochs, or raise --epochs"),
    ({"epochs": 0.14, "max_steps": 20}, {"warmup_epochs": 0, "warmup_fraction": 0.95},
     r"got 7 of 7 steps \(optim.warmup_fraction=0.95, 50 steps per epoch, epochs=0.14\). .* or raise --epochs"),
])  # fmt: skip
def test_a_warm_up_as_long_as_the_run_is_rejected_but_in_a_debug_run(changes, optim, found):
    run = build_run("demo")
    run = replace(run, optim=replace(run.optim, **optim), **changes)
    schedule = make_schedule(run, steps_per_epoch=50, accumulation_steps=1)
    with pytest.raises(ValueError, match=f"the warm-up must be shorter than the run, .*{found}"):
        check_warmup(run, schedule)
    check_warmup(replace(run, debug=True), schedule)
    longer = replace(run, epochs=20, max_steps=101)
    check_warmup(longer, make_schedule(longer, steps_per_epoch=50, accumulation_steps=1))


@pytest.mark.parametrize("global_batch_size, world_size, limit, split", [
    (128, 2, 64, (64, 1)), (48, 1, 16, (16, 3)), (7, 1, 4, (1, 7)), (8, 8, 100, (1, 1)),
    (48, 2, 16, (12, 2)),  # 16 does not divide a rank's 24 images
])  # fmt: skip
def test_ranks_share_a_global_batch_in_the_largest_micro_batches_that_fit(global_batch_size, world_size, limit, split):
    assert split_batch(global_batch_size, world_size=world_size, limit=limit) == BatchSplit(*split)


def test_an_indivisible_global_batch_gives_an_error_with_possible_numbers_of_ranks():
    with pytest.raises(ValueError, match="got 12 and 5 ranks. Use 1, 2, 3, 4, 6, 12 ranks, or change --global_batch"):
        split_batch(12, world_size=5, limit=4)


def test_the_end_is_saved_and_evaluated():
    for is_due in (SCHEDULE.is_save_step, SCHEDULE.is_eval_step):
        assert [step for step in range(1, 102) if is_due(step)] == [*range(10, 101, 10), 101]
