"""`vitkd-ds doctor`: find problems that would stop or slow down a run, before a long job starts.

The checks build models and run training steps with training's own functions (`vitkd_ds.train`). This folder has only
the code that training does not need, one file per topic. Checks download nothing, leave no files behind and never train
on the user's images.

If a check fails, its error becomes a row of the table, and the next check runs. This is possible because all ranks
agree on local failures before each collective. If a rank fails inside a collective, the other ranks wait for it until
the check times out. So the failed rank reports its error on stderr at once. A network failure also appears as a check
that times out.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NoReturn

from vitkd_ds.commands.doctor.data import check_images, check_knn
from vitkd_ds.commands.doctor.folder import check_folder
from vitkd_ds.commands.doctor.machine import check_devices, check_machine, check_network, check_versions
from vitkd_ds.commands.doctor.models import check_engines, check_models, check_settings, check_top1
from vitkd_ds.commands.doctor.rows import Patient, Row, Skipped, error, merged, table
from vitkd_ds.config.run import Run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import start_processes

logger = logging.getLogger(__name__)
Check = Callable[[Patient], Iterable[Row]]

LIMIT_S = 110
"""Time limit for start-up and for each check, in seconds. Each of them normally takes much less time."""
HEAD_START_S = 5
"""Seconds that the other ranks wait before they exit with an error, so that rank 0 can print the table first.

A launcher ends all ranks when the first one exits with an error."""
CHECKS: dict[str, Check] = {
    "versions": check_versions,
    "device": check_devices,
    "network": check_network,
    "machine": check_machine,
    "settings": check_settings,
    "models": check_models,
    "run folder": check_folder,
    "engines": check_engines,
    "data.train": partial(check_images, split="train"),
    "data.val": partial(check_images, split="val"),
    "data.knn": check_knn,
    "teacher top-1": check_top1,
}
"""Checks in execution order. A check may use the results of earlier checks."""
ADVICE = {
    "network": "run with NCCL_DEBUG=INFO; set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the nodes' common network",
    "engines": "lower --micro_batch_size_per_gpu if memory ran out; otherwise check whether --recipe demo passes here",
}
"""Remedy for errors that other packages raise, by check."""


class Examination:
    """One execution of doctor: `rows` of all finished checks, and this rank's `pending` rows of the running check."""

    def __init__(self, run: Run) -> None:
        self.started = time.monotonic()
        self.rows: list[Row] = []
        self.pending: list[Row] = []
        with self.limited("start"):
            self.patient = Patient(run, start_processes())
            self.patient.nodes = ranks.from_all(node_name())

    @contextmanager
    def limited(self, name: str) -> Iterator[None]:
        """If the body takes longer than LIMIT_S seconds, print the results so far and exit. `name` is the check."""
        timer = threading.Timer(LIMIT_S, self.give_up, [name])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def run(self, name: str, check: Check) -> None:
        """Run a check and collect its rows from all ranks. Collective."""
        start = time.monotonic()
        with self.limited(name):
            self.pending = list(attempted(name, check, self.patient))
            try:
                rows_of_ranks = ranks.from_all(self.pending)
            except Exception as caught:  # from gloo or NCCL: a rank has exited, so no collective can work
                self.give_up(name, f"lost another rank ({type(caught).__name__}: {caught})"[:300])
        self.pending = []
        rows = merged(rows_of_ranks, self.patient.nodes)
        self.rows += [replace(row, seconds=None if i else time.monotonic() - start) for i, row in enumerate(rows)]

    def show(self, end: str) -> None:
        """Print the table; its last line ends in `end`."""
        print(f"{table(self.rows + self.pending)}, {time.monotonic() - self.started:.0f} s, {end}", flush=True)

    def give_up(self, name: str, why: str = "") -> NoReturn:
        """Report that a check failed for the reason `why`, or timed out if `why` is "". Exit this process."""
        state = "waiting for the other ranks" if self.pending else "running, or waiting for another rank"
        state = f"has not finished this check after {LIMIT_S} s ({state})"
        found = f"rank {os.environ['RANK']} on {node_name()} {why or state}"
        self.pending.append(error(name, found, f"read other ranks' messages. If there are none, {ADVICE['network']}"))
        if os.environ["RANK"] == "0":
            self.show("stopped at this check")
        else:
            logger.error("%s", "\n".join(f"{row.level} {row.name}: {row.found}" for row in self.pending))
            time.sleep(HEAD_START_S)
        os._exit(1)


def examine(run: Run) -> bool:
    """Run all checks, print their table on rank 0, and return True if no check found an error. Collective.

    Raises:
        ValueError: this rank has no device, so the ranks cannot form a process group.
    """
    examination = Examination(run)
    for name, check in CHECKS.items():
        examination.run(name, check)
    if ranks.rank() == 0:
        num_nodes = len(set(examination.patient.nodes))
        num_ranks = ranks.world_size()
        examination.show(f"{num_ranks} rank{'s' * (num_ranks > 1)}" + f" on {num_nodes} nodes" * (num_nodes > 1))
    ranks.barrier()  # no rank exits before the table is printed, see HEAD_START_S
    return all(row.level != "error" for row in examination.rows)


def attempted(name: str, check: Check, patient: Patient) -> Iterator[Row]:
    """Yield this rank's rows of a check. If the check raises an exception on this rank, the last row reports it."""
    try:
        yield from check(patient)
    except Skipped as reason:
        yield Row("skipped", name, str(reason))
    except ranks.FailedElsewhere:
        pass
    except ValueError as caught:  # our own error, which includes a remedy
        yield error(name, str(caught))
    except Exception as caught:  # of any kind: the other checks are still useful
        text = f"{type(caught).__name__}: {caught}"
        logger.error("rank %s on %s, %s: %s", os.environ["RANK"], node_name(), name, text)
        yield error(name, text[:600], ADVICE.get(name, ""))


def node_name() -> str:
    """Return this node's name in Slurm, or its host name outside Slurm."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
