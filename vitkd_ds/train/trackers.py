"""Services that show the values of runs beside each other, for rank 0: Weights & Biases, MLflow and trackio.

Each is a `Tracker`, as TensorBoard's writer in `vitkd_ds.train.log` is, and an extra of this package. What one of them
raises is warned of once, and ends this tracker until the next start and never the run. So does an answer that is late.
"""

import io
import logging
import math
import netrc
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable, Protocol
from urllib.parse import urlsplit

from vitkd_ds.checkpoint.files import write_json
from vitkd_ds.checkpoint.folder import flattened
from vitkd_ds.config import entry_points
from vitkd_ds.config.reading import load_json
from vitkd_ds.config.run import Run

logger = logging.getLogger(__name__)

IDS = "trackers.json"
"""File of the run folder: tracker -> the id of the run there, which a resumed run continues."""
PROJECT = "vitkd_ds"
# Longest that a run waits for a service: until it can be reached, at the start, for values, and at the end.
REACH_S = 3
START_S = 30
SEND_S = 30
CLOSE_S = 60
# Settings in a call of MLflow's, and characters of a value, that every server takes.
MLFLOW_MOST = 100
MLFLOW_LENGTH = 500


class Tracker(Protocol):
    """What takes the values of a run."""

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values after `step` updates."""

    def close(self) -> None:
        """Send or write what waits."""


def open_trackers(names: Sequence[str], workdir: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open those of `names` that stand here, or in another package, for a run of these `settings` (nested dicts, as in
    config.json)."""
    kinds: dict[str, Callable[..., Tracker]] = {
        point.name: lambda *args, point=point: entry_points.load(point)(*args)
        for point in entry_points.installed("trackers")
    }
    kinds |= {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}
    opened = [name for name in names if name in kinds]
    # All ranks wait for the first, so all trackers together may take half of what the watchdog allows.
    most_s = 30 * settings.get("timeout_minutes", Run.timeout_minutes) / max(1, len(opened))
    return [_Forgiving(name, partial(kinds[name], workdir, settings), most_s) for name in opened]


class _Forgiving:
    """A tracker that warns once where another would raise or takes more than `most_s` seconds, and does nothing from
    then on."""

    def __init__(self, name: str, build: Callable[[], Tracker], most_s: float) -> None:
        self._name = name
        self._most_s = most_s
        self._tracker = self._attempt(build, 2 * START_S)

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker:
            self._attempt(lambda: self._tracker.add_values(step, values), SEND_S)

    def close(self) -> None:
        if self._tracker:
            self._attempt(self._tracker.close, 2 * CLOSE_S)

    def _attempt(self, function: Callable[[], Any], limit_s: float) -> Any:
        try:
            # The packages have limits of their own, but a server that sends a byte now and then outlasts those, and
            # trackio with a login waits for the hub without end. Their advice on stdout does not fit a run.
            with redirect_stdout(io.StringIO()):
                return within(min(limit_s, self._most_s), function)
        except Exception as error:  # any kind: these packages raise their own, and those of what they are built on
            self._tracker = None
            logger.warning(
                "%s failed and is disabled until the next start; metrics.jsonl still has every value: %s: %s",
                self._name,
                type(error).__name__,
                without_secrets(str(error)),
            )


def without_secrets(text: str) -> str:
    """Return the text with the passwords and keys masked that its addresses hold."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"([?&][\w-]*(?:token|key|password)=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


class _Wandb:
    """Weights & Biases. Offline, each start writes a folder of its own in RUN/wandb, all with the id of the one run."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # slow, and only rank 0 needs it

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=workdir.name,
            dir=str(workdir),
            mode=wandb_mode(),
            id=_id_of(workdir, "wandb", lambda: secrets.token_hex(4)),
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", init_timeout=START_S, finish_timeout=CLOSE_S),
        )
        # As an axis of its own: of wandb's own steps none may be lower than one before, as in a run that goes on.
        self._run.define_metric("*", step_metric="step")
        logger.info("wandb: run %s, %s", self._run.id, self._run.url or f"offline in {workdir / 'wandb'}")

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def wandb_mode() -> str | None:
    """None, for WANDB_MODE, where that is set; else online, or offline where there is no login, for which wandb would
    ask on a terminal, or where the server cannot be reached."""
    if os.environ.get("WANDB_MODE"):
        return None
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    has_login = bool(os.environ.get("WANDB_API_KEY"))
    with suppress(OSError, netrc.NetrcParseError):
        has_login = has_login or netrc.netrc(os.environ.get("NETRC")).authenticators(server.hostname) is not None
    if not has_login:
        return "offline"
    try:
        port = server.port or (443 if server.scheme == "https" else 80)
        socket.create_connection((server.hostname, port), timeout=REACH_S).close()
    except OSError:
        return "offline"
    return "online"


class _MLflow:
    """MLflow: the server that MLFLOW_TRACKING_URI names, or else files in RUN/mlflow."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        # Its own are minutes for a server that does not answer, in which the run would stand.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(START_S))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # Files are the one store that takes no database, and MLflow wants to be told that they are wanted.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            uri = (workdir / "mlflow").absolute().as_uri()
        from mlflow import MlflowClient  # slow, and only rank 0 needs it

        self._client = MlflowClient(tracking_uri=uri)
        self._id = _id_of(workdir, "mlflow", lambda: self._begin(workdir.name, settings))
        self._client.update_run(self._id, status="RUNNING")
        logger.info("mlflow: run %s", self._id)

    def _begin(self, name: str, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(project)
        run_id = self._client.create_run(experiment_id, run_name=name).info.run_id
        params = [Param(key, str(value)[:MLFLOW_LENGTH]) for key, value in flattened(dict(settings)).items()]
        for first in range(0, len(params), MLFLOW_MOST):
            self._client.log_batch(run_id, params=params[first : first + MLFLOW_MOST])
        return run_id

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(1000 * time.time())
        points = [Metric(name, value, now_ms, step) for name, value in values.items() if math.isfinite(value)]
        self._client.log_batch(self._id, metrics=points)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    """trackio: what TRACKIO_SERVER_URL or TRACKIO_SPACE_ID names, or else a database in TRACKIO_DIR or RUN/trackio, for
    all runs of a process in that of the first. What it cannot write it warns of itself, and goes on."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((workdir / "trackio").absolute()))  # read when it is imported
        # On a network's file system it would write fragments instead, among which a start does not find its run.
        os.environ.setdefault("TRACKIO_STORAGE_MODE", "sqlite")
        import trackio  # slow, and only rank 0 needs it

        # It finds a run by its name, and two run folders may have the same.
        name = _id_of(workdir, "trackio", lambda: f"{workdir.name}-{secrets.token_hex(4)}")
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(settings),
            resume="allow",
            private=True,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        logger.info("trackio: run %s, TRACKIO_DIR=%s", name, os.environ["TRACKIO_DIR"])

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """Return or raise what a function does; if it takes longer, raise TimeoutError and leave it to its thread."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # for the other thread
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    if not wait([future], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def _id_of(workdir: Path, name: str, begin: Callable[[], str]) -> str:
    """The id of this run in a tracker: that of an earlier start, or that of the one that `begin` makes."""
    ids = {}
    with suppress(OSError, ValueError, TypeError):  # lost or damaged: a new one is begun
        ids |= load_json(workdir / IDS)
    if not isinstance(ids.get(name), str):
        ids[name] = begin()
        write_json(workdir / IDS, ids)
    return ids[name]
