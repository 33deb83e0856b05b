"""`vitkd-ds doctor`: find in two minutes what would end or slow a run later, before the job's days begin.

One file per question. The checks call what builds and steps a run (`vitkd_ds.train`); only what training never asks is
written here. Nothing is left behind, nothing is downloaded, and no check trains on an image of the user's.

A check that fails on one rank becomes a row, and the others go on: what is local is agreed on before the next
collective. A rank that fails inside a collective says why on stderr at once, because the others then wait for it until
the time of the check is over. A check that does not come back is also what a sick network looks like.
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
"""For the start and for each check: many times what they take, and still within two minutes of a hang."""
HEAD_START_S = 5
"""For rank 0 to print the table: a launcher ends all ranks when the first one leaves with an error."""
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
"""In the order in which they run: each may use what those before it found out."""
ADVICE = {
    "network": "look at NCCL_DEBUG=INFO, and set NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME to the nodes' common network",
    "engines": "lower --micro_batch_size_per_gpu if memory ran out; else see whether --recipe demo passes here",
}
"""Advice on errors of other packages, which give none."""


class Examination:
    """The rows so far, and those of this rank (`pending`) of a check that other ranks have not finished."""

    def __init__(self, run: Run) -> None:
        self.started = time.monotonic()
        self.rows: list[Row] = []
        self.pending: list[Row] = []
        with self.limited("start"):
            self.patient = Patient(run, start_processes())
            self.patient.nodes = ranks.from_all(node_name())

    @contextmanager
    def limited(self, name: str) -> Iterator[None]:
        """End the process with what is known if the body takes longer than LIMIT_S."""
        timer = threading.Timer(LIMIT_S, self.give_up, [name])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def run(self, name: str, check: Check) -> None:
        """Run a check and add the rows of all ranks. Collective."""
        start = time.monotonic()
        with self.limited(name):
            self.pending = list(attempted(name, check, self.patient))
            try:
                rows_of_ranks = ranks.from_all(self.pending)
            except Exception as caught:  # of gloo or NCCL: a rank is gone, and nothing can be agreed on any more
                self.give_up(name, f"lost another rank ({type(caught).__name__}: {caught})"[:300])
        self.pending = []
        rows = merged(rows_of_ranks, self.patient.nodes)
        self.rows += [replace(row, seconds=None if i else time.monotonic() - start) for i, row in enumerate(rows)]

    def show(self, end: str) -> None:
        """Print the table, whose last line ends in `end`."""
        print(f"{table(self.rows + self.pending)}, {time.monotonic() - self.started:.0f} s, {end}", flush=True)

    def give_up(self, name: str, why: str = "") -> NoReturn:
        """End this process, of which a check did not come back, or failed for the reason `why`."""
        state = "waits for the others" if self.pending else "is running it, or waits for another rank"
        state = f"has not finished this check after {LIMIT_S} s: it {state}"
        found = f"rank {os.environ['RANK']} on {node_name()} {why or state}"
        self.pending.append(error(name, found, f"see what the other ranks say; if nothing, {ADVICE['network']}"))
        if os.environ["RANK"] == "0":
            self.show("stopped there")
        else:
            logger.error("%s", "\n".join(f"{row.level} {row.name}: {row.found}" for row in self.pending))
            time.sleep(HEAD_START_S)
        os._exit(1)


def examine(run: Run) -> bool:
    """Run all checks, print their table from rank 0, and return whether no row is an error. Collective; raises
    ValueError if this rank has no device, because then the ranks cannot even meet."""
    examination = Examination(run)
    for name, check in CHECKS.items():
        examination.run(name, check)
    if ranks.rank() == 0:
        num_nodes = len(set(examination.patient.nodes))
        num_ranks = ranks.world_size()
        examination.show(f"{num_ranks} rank{'s' * (num_ranks > 1)}" + f" on {num_nodes} nodes" * (num_nodes > 1))
    ranks.barrier()  # no rank leaves before the table is out, see HEAD_START_S
    return all(row.level != "error" for row in examination.rows)


def attempted(name: str, check: Check, patient: Patient) -> Iterator[Row]:
    """This rank's rows of a check; what it raises becomes the last one."""
    try:
        yield from check(patient)
    except Skipped as reason:
        yield Row("skipped", name, str(reason))
    except ranks.FailedElsewhere:
        pass
    except ValueError as caught:  # ours: says what to do
        yield error(name, str(caught))
    except Exception as caught:  # any kind: the other checks can still tell something
        text = f"{type(caught).__name__}: {caught}"
        logger.error("rank %s on %s, %s: %s", os.environ["RANK"], node_name(), name, text)
        yield error(name, text[:600], ADVICE.get(name, ""))


def node_name() -> str:
    """This node's name for Slurm, else for itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
