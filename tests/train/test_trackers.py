"""Trackers besides TensorBoard, with the real packages and no network: the files they leave in the run folder."""

import json
import socket
import sqlite3
import struct
import sys
import threading
import time
from contextlib import closing, suppress
from dataclasses import asdict

import pytest

from tests.conftest import metrics_of, run_command, wait_until
from tests.tiers import costly
from tests.train.test_log import points_of, warnings_of
from vitkd_ds.commands.parse import parse_run
from vitkd_ds.train.log import MetricsLog
from vitkd_ds.train.trackers import wandb_mode, within

SETTINGS = {"seed": 7, "optim": {"lr": 0.5}}
FOREIGN = (
    "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_DIR",
    "MLFLOW_HTTP_REQUEST_TIMEOUT", "TRACKIO_PROJECT", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID", "TRACKIO_STORAGE_MODE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in FOREIGN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def write_log(workdir, trackers, *lines, resumed_step=0):
    workdir.mkdir(exist_ok=True)
    log = MetricsLog(workdir, total_steps=9, resumed_step=resumed_step, trackers=trackers, settings=SETTINGS)
    for step, values in lines:
        log.log(step, values)
    log.close()


def wandb_records(file):
    """The records in wandb's file, a log in LevelDB's format with 32-KiB blocks."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(whole)
            whole = b""


def rows_of_wandb(workdir):
    """For each start: the run's id, its settings, and its history rows."""
    files = [*workdir.glob("wandb/offline-run-*/run-*.wandb")]
    # wandb's service writes the header at once, but may write the records only after `finish` has returned.
    wait_until(lambda: all(file.stat().st_size > 7 for file in files), [], timeout=30)
    for file in sorted(files, key=lambda file: file.parent.name):
        records = list(wandb_records(file))
        run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
        settings = {item.key: json.loads(item.value_json) for item in run.config.update}
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in records if record.WhichOneof("record_type") == "history"
        ]  # fmt: skip
        rows = [{key: value for key, value in row.items() if key[0] != "_"} for row in rows]
        yield run.run_id, {key: settings[key] for key in SETTINGS}, rows


def test_wandb_has_every_value_offline_and_a_resumed_run_has_the_id_of_its_first_start(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'vitkd_ds[wandb]'")
    workdir = tmp_path / "run"
    write_log(workdir, ["wandb"], (1, {"total": 1.5}), (2, {"total": 1.25, "lr": 0.1}), (3, {"total": 9.0}))
    write_log(workdir, ["wandb"], (3, {"total": 1.0}), (3, {"val_num_images": 8, "val_top1": 50.0}), resumed_step=2)
    (first, settings, rows), (second, _, later) = rows_of_wandb(workdir)
    assert first == second == json.loads((workdir / "trackers.json").read_text())["wandb"]
    assert settings == SETTINGS
    assert rows == [{"step": 1, "total": 1.5}, {"step": 2, "total": 1.25, "lr": 0.1}, {"step": 3, "total": 9.0}]
    assert later == [{"step": 3, "total": 1.0}, {"step": 3, "val_num_images": 8, "val_top1": 50.0}]
    assert not (workdir / "tensorboard").exists(), "which was not requested"


def test_wandb_is_online_only_with_a_login_and_a_server_that_answers(tmp_path, monkeypatch):
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert wandb_mode() == "offline"
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert wandb_mode() == "online"
        monkeypatch.delenv("WANDB_API_KEY")
        assert wandb_mode() == "offline"
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
        assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode() is None


def mlflow_client(workdir):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=(workdir / "mlflow").as_uri())


def test_mlflow_has_every_value_in_the_run_folder_and_a_resumed_run_continues_its_run(tmp_path):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'vitkd_ds[mlflow]'")
    workdir = tmp_path / "run"
    write_log(workdir, ["mlflow"], (1, {"total": 1.5, "kl": float("nan")}), (2, {"total": 1.25, "lr": 0.1}))
    write_log(workdir, ["mlflow"], (3, {"total": 1.0}), resumed_step=2)
    client = mlflow_client(workdir)
    (run,) = client.search_runs([client.get_experiment_by_name("vitkd_ds").experiment_id])
    assert run.info.run_id == json.loads((workdir / "trackers.json").read_text())["mlflow"]
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params == {"seed": "7", "optim.lr": "0.5"}
    history = {name: client.get_metric_history(run.info.run_id, name) for name in ("total", "lr")}
    found = {name: [(point.step, point.value) for point in points] for name, points in history.items()}
    assert found == {"total": [(1, 1.5), (2, 1.25), (3, 1.0)], "lr": [(2, 0.1)]}


@pytest.mark.cold
@pytest.mark.slow
def test_trackio_has_every_value_in_the_run_folder_and_a_resumed_run_continues_its_run(tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed: docs/training.md says how")
    workdir = tmp_path / "run"
    starts = [([(1, {"total": 1.5}), (2, {"total": 1.25, "lr": 0.1})], 0), ([(3, {"total": 1.0})], 2)]
    code = f"""
from pathlib import Path
from tests.train.test_trackers import write_log
for lines, step in {starts}:
    write_log(Path({str(workdir)!r}), ["trackio"], *lines, resumed_step=step)
"""
    done = run_command(sys.executable, "-c", code)  # its folder is fixed once per process
    assert done.returncode == 0, done.stderr
    assert "rackio" not in done.stdout, "it prints unsuitable advice"
    with closing(sqlite3.connect(workdir / "trackio" / "vitkd_ds.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
        ((name, settings),) = database.execute("select run_name, config from configs").fetchall()
    assert {row[0] for row in rows} == {name} == {json.loads((workdir / "trackers.json").read_text())["trackio"]}
    assert name.startswith("run-")
    assert [(step, json.loads(values)) for _, step, values in rows] == [line for lines, _ in starts for line in lines]
    assert {key: json.loads(settings)[key] for key in SETTINGS} == SETTINGS


def test_waiting_for_a_service_has_a_limit_and_its_errors_are_raised():
    assert within(60, lambda: 7) == 7
    with pytest.raises(KeyError, match="own"):
        within(60, lambda: {}["own"])
    with pytest.raises(TimeoutError, match="no answer within 0.1 s"):
        within(0.1, lambda: time.sleep(30))


def test_an_unresponsive_trackio_does_not_affect_the_run(tmp_path, monkeypatch, capsys):
    trackio = pytest.importorskip("trackio", reason="trackio is not installed: docs/training.md says how")
    monkeypatch.setattr(trackio, "init", lambda **_: (print("* hidden"), time.sleep(5)))
    monkeypatch.setattr("vitkd_ds.train.trackers.START_S", 0.2)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    write_log(tmp_path / "run", ["trackio"], (1, {"total": 1.5}))
    print("seen")
    assert capsys.readouterr().out == "seen\n"
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1]


def test_a_failed_tracker_gives_one_warning_and_does_not_affect_the_others(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'vitkd_ds[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    workdir = tmp_path / "run"
    write_log(workdir, ["mlflow", "tensorboard"], *((step, {"total": 1.0}) for step in (1, 2, 3)))
    (told,) = [text for text in warnings_of(caplog) if "is disabled until" in text]
    assert told.startswith("mlflow failed and is disabled until the next launch")
    assert [line["step"] for line in metrics_of(workdir)] == [1, 2, 3]
    assert points_of(workdir) == {"total": [1, 2, 3]}
    assert not (workdir / "trackers.json").exists(), "so the next start creates one"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("call", ["values", *costly(["start"])])
def test_a_server_that_answers_slowly_is_dropped_at_the_time_limit(tmp_path, caplog, monkeypatch, call):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'vitkd_ds[mlflow]'")
    monkeypatch.setattr("vitkd_ds.train.trackers.SEND_S", 4)
    share = {"timeout_minutes": 4 / 30} if call == "start" else {}  # half of the watchdog's limit, which is shorter

    def trickle():
        with suppress(OSError), server.accept()[0] as connection:
            accepted.set()
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.05):
                connection.sendall(b"x")

    accepted, ended = threading.Event(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        workdir = tmp_path / "run"
        workdir.mkdir()
        secret = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"
        if call == "start":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", secret)
        log = MetricsLog(workdir, total_steps=9, resumed_step=0, trackers=["mlflow"], settings=SETTINGS | share)
        if call == "values":
            from mlflow import MlflowClient

            log.trackers[0]._tracker._client = MlflowClient(tracking_uri=secret)
        log.log(1, {"total": 1.0})
        log.close()
        ended.set()
        thread.join()
    (told,) = [text for text in warnings_of(caplog) if "is disabled until" in text]
    assert "TimeoutError: no answer within 4 s" in told and accepted.is_set()


def test_a_warning_hides_the_password_in_an_address(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install 'vitkd_ds[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://user:se@cret@127.0.0.1:1/x?api_key=hidden&n=1")
    write_log(tmp_path / "run", ["mlflow"], (1, {"total": 1.0}))
    (told,) = [text for text in warnings_of(caplog) if "is disabled until" in text]
    assert "nothing://***@127.0.0.1:1/x?api_key=***&n=1" in told and "cret" not in told and "hidden" not in told


@pytest.mark.parametrize("text", ["aim", "wandb,wandb", "none"])
def test_an_unknown_tracker_and_one_named_twice_are_rejected(text):
    with pytest.raises(ValueError, match="trackers must be names of tensorboard, wandb, mlflow, trackio, each once"):
        parse_run((), {"trackers": text})


def test_trackers_are_read_from_text_and_from_a_stored_run(tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'vitkd_ds[wandb]'")
    run = parse_run((), {"trackers": "tensorboard, wandb"})
    assert run.trackers == ("tensorboard", "wandb")
    (tmp_path / "config.json").write_text(json.dumps(asdict(run)))
    assert parse_run((), {"recipe": str(tmp_path)}).trackers == run.trackers
    assert parse_run((), {"trackers": ""}).trackers == ()


@pytest.mark.cold
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_tracker_is_rejected_with_its_extra_before_slow_imports(tmp_path, name):
    (tmp_path / name).mkdir()  # a result folder written by wandb is not the package
    code = f"""
import sys
from importlib.machinery import PathFinder
class Without:
    def find_spec(self, full, path=None, target=None):
        return PathFinder.find_spec(full, [{str(tmp_path)!r}]) if full == {name!r} else None
sys.meta_path.insert(0, Without())
from vitkd_ds.commands.parse import parse_run
try:
    parse_run((), {{"trackers": {name!r}}})
except ValueError as error:
    print(error, "torch" in sys.modules)
"""
    done = run_command(sys.executable, "-c", code)
    assert done.stdout.startswith(f"tracker {name} is not installed. Run pip install 'vitkd_ds[{name}]'")
    assert done.stdout.strip().endswith("False")
