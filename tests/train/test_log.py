"""metrics.jsonl after a crash, and the meter's means and speed."""

import torch

from tests.conftest import metrics_of
from vitkd_ds.train.log import Meter, MetricsLog


def write_log(workdir, *lines, **resumed):
    log = MetricsLog(workdir, **{"total_steps": 4, "resumed_step": 0} | resumed)
    for step, values in lines:
        log.log(step, values)
    log.close()
    return metrics_of(workdir)


def test_a_resumed_log_drops_the_lines_of_steps_that_run_again_and_a_line_cut_short(tmp_path):
    write_log(tmp_path, *((step, {"total": float(step)}) for step in (1, 2, 3)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "to')
    lines = write_log(tmp_path, (3, {"total": 3.5}), resumed_step=2)
    assert [(line["step"], line["total"]) for line in lines] == [(1, 1), (2, 2), (3, 3.5)]


def test_an_evaluation_that_runs_again_is_dropped_alone(tmp_path):
    write_log(tmp_path, *((step, {name: 1.0}) for step, name in ((1, "total"), (2, "total"), (2, "val_top1"))))
    for evaluated_step, kept in ((2, [1, 2, 2]), (-1, [1, 2])):
        lines = write_log(tmp_path, resumed_step=2, evaluated_step=evaluated_step)
        assert [line["step"] for line in lines] == kept


def test_values_that_are_not_finite_are_null_so_that_each_line_stays_json(tmp_path):
    assert write_log(tmp_path, (1, {"total": float("nan")})) == [{"step": 1, "total": None}]


def test_the_meter_means_terms_and_leaves_first_steps_and_pauses_out_of_the_speed():
    now = iter([0.0, 50.0, 60.0, 100.0, 103.0])
    meter = Meter(8, clock=lambda: next(now))

    def step(value):
        meter.start()
        meter.add({"total": torch.tensor(value)})

    assert meter.images_per_s is None
    step(1.0)  # from 0 to 50: warming up
    assert meter.images_per_s == 8 / 50
    step(2.0)
    step(3.0)  # 50 to 60: two timed steps
    assert meter.read() == {"total": 2.0, "images_per_s": 8 / 5, "s_per_step": 5.0}
    step(4.0)  # 100 to 103
    meter.pause()
    assert meter.read() == {"total": 4.0, "images_per_s": 8 / 3, "s_per_step": 3.0}
    assert meter.images_per_s == 8 * 3 / 13


def test_where_the_devices_peak_is_known_the_speed_is_also_that_of_its_arithmetic():
    now = iter([0.0, 50.0, 60.0])
    meter = Meter(8, clock=lambda: next(now), image_gflops=500.0, peak_tflops=2.0)
    for value in (1.0, 2.0, 3.0):
        meter.start()
        meter.add({"total": torch.tensor(value)})
    speed = meter.read()
    # 8 images in 5 s of 500 GFLOP each, on one rank.
    assert (speed["tflops"], speed["mfu"]) == (0.8, 0.4)
