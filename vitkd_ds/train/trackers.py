"""Metrics trackers for rank 0: Weights & Biases, MLflow and trackio, each an optional package.

Each of them implements `Tracker`, like TensorBoard's writer in `vitkd_ds.train.log`. If a tracker raises an error or
answers too late, a warning is logged once, the tracker is disabled until the next launch, and the run continues.
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
"""File in the run folder with the run's id in each tracker. A resumed run continues under the same ids."""
PROJECT = "vitkd_ds"
# Time limits in seconds: to connect, to start, to send values, and to close.
REACH_S = 3
START_S = 30
SEND_S = 30
CLOSE_S = 60
# Limits that every MLflow server accepts: parameters per call, and characters per value.
MLFLOW_MOST = 100
MLFLOW_LENGTH = 500


class Tracker(Protocol):
    """Interface of a metrics tracker."""

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values after `step` updates."""

    def close(self) -> None:
        """Send or write pending values, and close."""


def open_trackers(names: Sequence[str], workdir: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers in `names` that this module or an entry point defines; ignore unknown names.

    Args:
        settings: the run's settings as nested dicts, with the keys of config.json.
    """
    kinds: dict[str, Callable[..., Tracker]] = {
        point.name: lambda *args, point=point: entry_points.load(point)(*args)
        for point in entry_points.installed("trackers")
    }
    kinds |= {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}
    opened = [name for name in names if name in kinds]
    # The other ranks wait for rank 0, so all trackers together may take at most half of the watchdog's limit.
    most_s = 30 * settings.get("timeout_minutes", Run.timeout_minutes) / max(1, len(opened))
    return [_Forgiving(name, partial(kinds[name], workdir, settings), most_s) for name in opened]


class _Forgiving:
    """Wrapper that disables a tracker, with one warning, if it raises an error or exceeds a time limit.

    The time limit depends on the operation and is at most `most_s` seconds.
    """

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
            # The packages' own time limits do not suffice: a server that sends occasional bytes outlasts them, and
            # trackio with a login waits for the hub forever. The packages' hints on stdout do not apply here.
            with redirect_stdout(io.StringIO()):
                return within(min(limit_s, self._most_s), function)
        except Exception as error:  # these packages raise many error types
            self._tracker = None
            logger.warning(
                "%s failed and is disabled until the next launch; metrics.jsonl still has every value: %s: %s",
                self._name,
                type(error).__name__,
                without_secrets(str(error)),
            )


def without_secrets(text: str) -> str:
    """Return the text with passwords and keys in URLs masked."""
    text = re.sub(r"://\S*@", "://***@", text)
    return re.sub(r"([?&][\w-]*(?:token|key|password)=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


class _Wandb:
    """Tracker for Weights & Biases. In wandb's offline mode, each launch writes a new folder in RUN/wandb.

    All these folders have the same run id.
    """

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
        # Use a separate axis: wandb's built-in step must never decrease, but it does when a run resumes.
        self._run.define_metric("*", step_metric="step")
        logger.info("wandb: run %s, %s", self._run.id, self._run.url or f"offline in {workdir / 'wandb'}")

    def add_values(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


def wandb_mode() -> str | None:
    """Return wandb's mode, or None if WANDB_MODE sets it.

    The mode is "online" if there is a login and the server can be reached, and "offline" otherwise. If the mode were
    "online" without a login, wandb would ask for the login on the terminal.
    """
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
    """Tracker for MLflow. Values go to the server at MLFLOW_TRACKING_URI or, if that is not set, to RUN/mlflow."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        # MLflow's defaults would block the run for minutes if the server does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(START_S))
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            # The file store needs no database, but MLflow requires an explicit opt-in.
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
    """Tracker for trackio. Values go to TRACKIO_SERVER_URL or TRACKIO_SPACE_ID if one of them is set.

    Otherwise they go to a database in TRACKIO_DIR, which is RUN/trackio by default. All runs of one process share the
    database of the first run. If trackio cannot write, it prints a warning and continues.
    """

    def __init__(self, workdir: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((workdir / "trackio").absolute()))  # read during import
        # On a network file system, trackio would write fragments by default, and would not find a resumed run in them.
        os.environ.setdefault("TRACKIO_STORAGE_MODE", "sqlite")
        import trackio  # slow, and only rank 0 needs it

        # trackio finds a run by its name, and two run folders may have the same name.
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
    """Call a function in a thread. Return its result, or raise its error.

    If the function takes more than `seconds`, raise TimeoutError; the thread is not stopped.
    """
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except Exception as error:  # re-raised in the calling thread
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    if not wait([future], timeout=seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def _id_of(workdir: Path, name: str, begin: Callable[[], str]) -> str:
    """Return this run's id in a tracker. If no earlier launch has stored an id, `begin` creates it."""
    ids = {}
    with suppress(OSError, ValueError, TypeError):  # lost or damaged: create a new id
        ids |= load_json(workdir / IDS)
    if not isinstance(ids.get(name), str):
        ids[name] = begin()
        write_json(workdir / IDS, ids)
    return ids[name]
