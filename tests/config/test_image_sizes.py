"""Progressive resolution: phases in epochs, and settings that do not fit."""

from dataclasses import replace

import pytest

from vitkd_ds.config.check import check_run
from vitkd_ds.config.image_sizes import check_phases, phases_of
from vitkd_ds.config.options import apply_options
from vitkd_ds.recipes import build_run
from vitkd_ds.train.schedule import build_phases, make_schedule

DEMO = build_run("demo")


@pytest.mark.parametrize("text, num_epochs, sizes", [
    ("96:2,160:4,192:2,224:2", 10, "96 96 160 160 160 160 192 192 224 224"),
    ("96:1,224:1", 5, "96 96 224 224 224"),
    ("96:1,224:2", 4, "96 224 224 224"),
    ("224:7", 2, "224 224"),
])  # fmt: skip
def test_a_phase_ends_at_the_epoch_end_nearest_to_its_part_of_the_run(text, num_epochs, sizes):
    phases = phases_of(text, num_epochs)
    assert [phases.size_at(epoch) for epoch in range(num_epochs)] == [*map(int, sizes.split())]
    assert phases.size_at(num_epochs + 3) == 224
    check_phases(phases, text)


@pytest.mark.parametrize("num_epochs, strengths", [(1, [1.0]), (2, [0, 1]), (5, [0, 0.25, 0.5, 0.75, 1])])
def test_randaugment_gets_stronger_by_the_same_amount_each_epoch(num_epochs, strengths):
    phases = phases_of("96:1,224:2", num_epochs)
    assert [phases.strength_at(epoch) for epoch in range(num_epochs)] == strengths


@pytest.mark.parametrize("text", ["12", "12:", "12:1;28:1", "12:1,", "0:1,28:1", "12:0,28:1", "12:-1,28:2", "a:1,28:1"])
def test_a_text_of_another_form_is_rejected_with_an_example(text):
    with pytest.raises(
        ValueError, match="image_sizes must be SIZE:PARTS pairs .*, such as 96:2,160:4,192:2,224:2, got"
    ):
        apply_options(DEMO, {"data.image_sizes": text})


@pytest.mark.parametrize("options, message", [
    ({"data.image_sizes": "20:1,12:1,28:1"}, "the sizes in data.image_sizes must rise, got 20:1,12:1,28:1"),
    ({"data.image_sizes": "20:1,20:1,28:1"}, "the sizes in data.image_sizes must rise"),
    ({"data.image_sizes": "12:1,20:1"}, "last size in data.image_sizes must be data.image_size=28"),
    ({"data.image_sizes": "12:1,20:1,28:1", "epochs": "2", "optim.warmup_epochs": "1"},
     "data.image_sizes=12:1,20:1,28:1 gives size 20 no whole epoch, because the run has 2 epochs"),
    ({"data.image_sizes": "12:1,28:1", "teacher.image_size": "56"},
     "data.image_sizes needs teachers that see the student's images, got teacher.image_size=56"),
])  # fmt: skip
def test_sizes_that_do_not_fit_the_run_are_rejected_before_any_model_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        check_run(apply_options(DEMO, options))


def test_sizes_that_fit_are_accepted():
    run = apply_options(DEMO, {"data.image_sizes": "12:1,20:1,28:1", "teacher.image_size": "28"})
    check_run(run)
    check_run(replace(run, epochs=0.5, debug=True))


def test_phases_are_parts_of_the_steps_that_a_run_makes():
    run = apply_options(DEMO, {"data.image_sizes": "12:1,28:1", "max_steps": "33"})
    schedule = make_schedule(run, steps_per_epoch=10, accumulation_steps=1)
    assert schedule.num_epochs == 4 and build_phases(run, schedule).ends == (2, 4)
    assert build_phases(DEMO, schedule) is None
    short = replace(run, max_steps=7)
    schedule = make_schedule(short, steps_per_epoch=10, accumulation_steps=1)
    with pytest.raises(ValueError, match="gives size 12 no whole epoch, because the run has 1 epochs"):
        build_phases(short, schedule)
    assert build_phases(replace(short, debug=True), schedule).size_at(0) == 28
