"""metrics.jsonl after a crash, and the meter's means and speed."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.checkpoint.test_failing_saves import limit_file_size
from tests.conftest import metrics_of
from vitkd_ds.engine import ranks
from vitkd_ds.train.console import progress_line
from vitkd_ds.train.log import Meter, MetricsLog


def write_log(workdir, *lines, **resumed):
    log = MetricsLog(workdir, **{"total_steps": 4, "resumed_step": 0} | resumed)
    for step, values in lines:
        log.log(step, values)
    log.close()
    return metrics_of(workdir)


def test_a_resumed_log_drops_lines_of_repeated_steps_and_a_truncated_line(tmp_path):
    write_log(tmp_path, *((step, {"total": float(step)}) for step in (1, 2, 3)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "to')
    lines = write_log(tmp_path, (3, {"total": 3.5}), resumed_step=2)
    assert [(line["step"], line["total"]) for line in lines] == [(1, 1), (2, 2), (3, 3.5)]


DAMAGED = {
    "a flipped bit": b'{"step": 1, "tot\xe1l": 1.0}', "null": b"null", "a list": b"[]", "a number": b"7", "empty": b"",
    "no step": b'{"total": 1.0}', "a text as step": b'{"step": "1"}', "no number": b'{"step": null}',
    "step in a list": b'{"step": [1]}', "true": b'{"step": true}', "not finite": b'{"step": NaN}', "zeros": bytes(40),
    "deep": b"[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_only_the_damaged_or_truncated_line_is_dropped(tmp_path, caplog, line):
    write_log(tmp_path, (1, {"total": 1.0}), (2, {"total": 2.0}))
    first, second = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    (tmp_path / "metrics.jsonl").write_bytes(first + b"\n" + line + b"\n" + second + b"\n")
    lines = write_log(tmp_path, (3, {"total": 3.0}), resumed_step=2)
    assert [(line["step"], line["total"]) for line in lines] == [(1, 1), (2, 2), (3, 3)]
    assert ("metrics.jsonl: dropping 1 damaged line(s)" in caplog.text) == bool(line)


def test_only_the_evaluation_that_runs_again_is_dropped(tmp_path):
    write_log(tmp_path, *((step, {name: 1.0}) for step, name in ((1, "total"), (2, "total"), (2, "val_num_images"))))
    for evaluated_step, kept in ((2, [1, 2, 2]), (-1, [1, 2])):
        lines = write_log(tmp_path, resumed_step=2, evaluated_step=evaluated_step)
        assert [line["step"] for line in lines] == kept


def warnings_of(caplog):
    """Texts of the warnings, without progress lines, which appear once a command has installed the console."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def points_of(workdir):
    """Name to steps, as TensorBoard shows them."""
    found = EventAccumulator(str(workdir / "tensorboard")).Reload()
    return {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


@pytest.mark.parametrize("room", [0, 20], ids=["none", "for a part"])
def test_a_briefly_full_disk_loses_nothing_of_the_log(tmp_path, caplog, room):
    log = MetricsLog(tmp_path, total_steps=6, resumed_step=0)
    files = [tmp_path / "metrics.jsonl", *(tmp_path / "tensorboard").iterdir()]
    try:
        for step in range(1, 7):
            if step in (3, 4):
                limit_file_size(min(file.stat().st_size for file in files) + room)
            elif step == 5:
                limit_file_size(-1)
            log.log(step, {"total": float(step), "lr": 0.1})
    finally:
        limit_file_size(-1)
    log.close()
    assert [line["step"] for line in metrics_of(tmp_path)] == [1, 2, 3, 4, 5, 6], "late, and whole"
    assert points_of(tmp_path) == dict.fromkeys(("total", "lr"), [1, 2, 3, 4, 5, 6])
    told = [text.partition(": [Errno 27]")[0] for text in warnings_of(caplog)]
    assert told == [f"logging failed: cannot write {file}" for _ in (3, 4) for file in files]


def test_points_of_repeated_steps_are_purged(tmp_path):
    write_log(tmp_path, *((step, {"total": 1.0}) for step in (1, 2, 3)))
    write_log(tmp_path, (3, {"total": 2.0}), resumed_step=2)
    assert points_of(tmp_path) == {"total": [1, 2, 3]}


def test_non_finite_values_become_null_so_that_each_line_stays_json(tmp_path):
    assert write_log(tmp_path, (1, {"total": float("nan")})) == [{"step": 1, "total": None}]


def test_the_meter_averages_terms_and_excludes_first_steps_and_pauses_from_the_speed():
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
    assert meter.read() == {"total": 2.0, "images_per_s": 8 / 5, "s_per_step": 5.0, "data_wait_s": 0.0}
    step(4.0)  # 100 to 103
    meter.pause()
    assert meter.read() == {"total": 4.0, "images_per_s": 8 / 3, "s_per_step": 3.0, "data_wait_s": 0.0}
    assert meter.images_per_s == 8 * 3 / 13


def observe(seen):
    """The log of a term that is 1, 2 and 6 on rank 0, and 10 more on rank 1.

    Updates take one second; rank 1 waits for data during half of it. Used by tests/engine/observe.py.
    """
    now = iter([0.0, 1.0, 3.0])
    meter = Meter(8, clock=lambda: next(now), image_gflops=500.0, peak_tflops=2.0)
    for value in (1.0, 2.0, 6.0):
        meter.start()
        meter.add({"term": torch.tensor(value + 10 * ranks.rank())})
    meter.waited_s = 1.0 * ranks.rank()
    seen["meter"] = ranks.from_all(meter.read())


def test_over_ranks_terms_and_waits_are_averaged_and_the_speed_is_the_total(observed):
    # 8 images per second of the mean timed update; each of two GPUs of 2 TFLOP/s has half of them.
    speed = {"images_per_s": 8.0, "s_per_step": 1.0, "data_wait_s": 0.25, "tflops": 2.0, "mfu": 1.0}
    assert observed[2]["meter"] == [{"term": 8.0} | speed] * 2


def test_data_waiting_time_covers_the_timed_steps_and_is_on_the_progress_line():
    now = iter([0.0, 10.0, 11.0, 12.0, 14.0])
    meter = Meter(8, clock=lambda: next(now))
    for number, waited_s in enumerate([0.5, 0.05, 0.15]):  # the first step warms up and does not count
        meter.start()
        meter.add({"total": torch.tensor(float(number))}, waited_s=waited_s)
    first = meter.read()
    assert first["data_wait_s"] == pytest.approx(0.1) and first["total"] == 1.0
    meter.start()
    meter.add({"total": torch.tensor(3.0)}, waited_s=0.3)
    values = meter.read()
    assert values["data_wait_s"] == pytest.approx(0.3)
    line = progress_line(4, 10, values | {"data_wait_s": 0.5})
    assert "4 images/s  eta 0:00:12  25 % waiting for data" in line and "data_wait_s" not in line


def test_an_impossible_tensorboard_folder_gives_a_warning_and_the_log_continues(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()
    log = MetricsLog(tmp_path, total_steps=9, resumed_step=0)
    log.log(1, {"total": 1.0})
    log.close()
    assert any("logging failed: " in text and "tensorboard" in text for text in warnings_of(caplog))
    assert [line["step"] for line in metrics_of(tmp_path)] == [1]
