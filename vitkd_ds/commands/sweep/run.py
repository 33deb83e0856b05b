"""Train the unfinished runs of a sweep, one or several at the same time."""

import logging
import os
import signal
import subprocess
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Iterator, Sequence

from vitkd_ds.commands.sweep.members import Member
from vitkd_ds.train.signals import ASKING

logger = logging.getLogger(__name__)

POLL_S = 0.2


@dataclass
class Job:
    """A run that is training, its process and its log file."""

    member: Member
    slot: int
    process: subprocess.Popen
    log: IO[str]


class Stopped(Exception):
    """A signal stopped the sweep. The running jobs got it too, to save a checkpoint, and have exited."""


def run_missing(members: Sequence[Member], *, jobs: int) -> list[Member]:
    """Train every unfinished run, and return the runs that did not finish.

    The CPUs of this process are divided among the jobs. If there are GPUs, each job gets one. SIGINT, SIGTERM and
    SIGUSR1 are forwarded to the running jobs, which save a checkpoint and exit. After that, no further run is started.

    Args:
        members: all runs of the sweep.
        jobs: number of runs that train at the same time.

    Raises:
        ValueError: the folder of a run has a finished run with other settings.
        Stopped: a signal arrived.
    """
    missing = deque(member for member in members if not member.is_done())
    failed = []
    training = list[Job]()
    logger.info("%d of %d runs are finished", len(members) - len(missing), len(members))
    with _passing_signals_to(training) as received:
        while training or (missing and not received):
            while missing and len(training) < jobs and not received:
                slot = min(set(range(jobs)) - {job.slot for job in training})
                training.append(_start(missing.popleft(), slot, jobs))
            time.sleep(POLL_S)
            for job in [job for job in training if job.process.poll() is not None]:
                training.remove(job)
                if not _is_finished(job):
                    failed.append(job.member)
    if received:
        raise Stopped
    return failed


def _is_finished(job: Job) -> bool:
    """Log how an exited job ended, and return whether its run is finished."""
    job.log.close()
    who = f"{job.member.name} seed {job.member.seed}"
    if job.process.returncode:
        logger.warning("%s failed. See %s", who, job.log.name)
        return False
    is_done = job.member.is_done()
    logger.info("%s is %s", who, "finished" if is_done else "stopped by a signal after saving a checkpoint")
    return is_done


@contextmanager
def _passing_signals_to(training: list[Job]) -> Iterator[list[int]]:
    """Forward stop signals to all jobs in the list. Yield a list that collects every received signal."""
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        for job in training:
            job.process.send_signal(number)

    # Closing the terminal ends only the sweep: its runs have their own sessions and continue training.
    numbers = [number for number in ASKING if number != signal.SIGHUP]
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(member: Member, slot: int, jobs: int) -> Job:
    member.folder.parent.mkdir(parents=True, exist_ok=True)
    log = open(f"{member.folder}.log", "a")  # outside the run folder, which belongs to the run
    environ = dict(os.environ)
    cpus = sorted(os.sched_getaffinity(0))
    own = set(cpus[slot::jobs]) or {cpus[slot % len(cpus)]}
    if devices := _gpus():
        environ["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    # A separate session, so that Ctrl-C reaches the job only once, through `pass_on`.
    process = subprocess.Popen(
        member.command(), stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True
    )
    os.sched_setaffinity(process.pid, own)
    logger.info("training %s seed %d on %d CPUs; log: %s", member.name, member.seed, len(own), log.name)
    return Job(member, slot, process, log)


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as entries for CUDA_VISIBLE_DEVICES."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device for device in visible.split(",") if device]
    found = sorted(int(name[6:]) for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit())
    return [str(number) for number in found]
