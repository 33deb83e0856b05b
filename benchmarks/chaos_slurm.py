"""`benchmarks/chaos.py --slurm`: kill parts of a job on a real two-node Slurm cluster on this machine.

The job uses the shipped job script, with one rank per node. A fault kills a rank, srun, a node's slurmstepd, the job
script or a whole node. Other faults last for some seconds: a node's network link is cut, or the disk of the run folder
is full or returns errors. The last faults come at the end of the run, during evaluation and export. Apart from faults,
the benchmark does only what a user would do: it restarts a dead node, and it submits the same command again if Slurm
has ended the job.

With some faults comes a second one of `benchmarks/chaos_trust.py`: the link to the run folder points to another run for
a moment, a second job tries to take the lock from another namespace, or the teacher's file changes before the next
start. The job also inherits another job's variables. The report has the seconds from each fault until the job stopped
running, except after SIGTERM. It also has the phases in which ranks noticed that another rank was lost. This needs
root, and pytest, because the Slurm cluster is that of the tests.
"""

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks import network
from benchmarks.chaos import (
    OPTIONS,
    calm_run,
    compare,
    count,
    kill_one,
    last_step,
    latest_step,
    log_file,
    wait_for_moment,
)
from benchmarks.chaos_disk import build_failing_disk, fill, small_disk
from benchmarks.chaos_trust import FOREIGN, Trust
from benchmarks.network import INTERFACE, Network
from tests.slurm import cluster as slurm
from tests.slurm.cluster import Cluster

TRUST = ("link", "namespaces", "stale teacher", None, None, None)  # see chaos_trust.py; FOREIGN is set for every start
REPOINTED_S = 2.0  # maximum time for which the run's link points to another run
WHAT = ("a rank", "a rank", "srun", "slurmstepd", "job script", "node", "link", "disk", "disk")
STEPS_PER_FAULT = 20
ALONE_STEPS = 30  # number of steps after a fault that prove that the run survived it
CUT_S = 5.0  # maximum length of a temporary fault, shorter than Slurm's timeout for a node
NUM_ENDINGS, ENDING_S = 5, 0.5  # number of faults at the end of the run, and their maximum delay after its last step
ALLOCATION = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--time=4", "--signal=B:USR1@120"]
UNNOTICED_S = 400.0  # maximum wait for the end of a start; longer than the job's time limit
UNSTARTED_S = 600.0
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")


class Job:
    """The run's Slurm job, which is submitted again whenever Slurm has ended it."""

    def __init__(self, cluster: Cluster, trust: Trust, steps: int) -> None:
        self.cluster, self.trust, self.workdir, self.steps = cluster, trust, trust.workdir, steps
        self.ids, self.asked_at = [], 0.0
        disk = self.workdir.parent
        self.mark, library = disk / "failing", disk.parent / "failing.so"
        build_failing_disk(library)
        foreign = "".join(f",{name}={text}" for name, text in FOREIGN.items())
        exported = f"--export=ALL{foreign},MAX_FAILURES=1000000,LD_PRELOAD={library},FAILING={self.mark}"
        self.command = [exported, *ALLOCATION, "slurm/vitkd_tiny.sh", *OPTIONS,
                        f"--max_steps={steps}", f"--workdir={trust.place('link')}", trust.option]  # fmt: skip

    def current(self) -> tuple[str, str]:
        """Return the latest start of the job, as "JOB.RESTARTS", and the job's state in Slurm."""
        told = self.cluster.job(self.ids[-1])
        return f"{self.ids[-1]}.{told['Restarts']}", told["JobState"]

    def until_running(self) -> str | None:
        """Wait until a start is running, and return it. If the job has ended, submit it again. If the run is finished,
        return None."""
        deadline = time.monotonic() + UNSTARTED_S
        while not (self.workdir / "done").exists():
            which, state = self.current() if self.ids else ("", "")
            if state == "RUNNING":
                return which
            if state in ("", *FINAL):
                self.ids.append(self.cluster.submit(*self.command))
            assert time.monotonic() < deadline, f"start {which} stays {state}: {self.log()[-3000:]}"
            time.sleep(0.3)
        return None

    def is_over(self, which: str) -> bool:
        """Return whether this start is no longer running."""
        return self.current() != (which, "RUNNING")

    def was_over(self, which: str) -> bool:
        """Like `is_over`, but ask Slurm at most twice per second: asking takes longer than writing a checkpoint."""
        if time.monotonic() > self.asked_at + 0.5:
            self.asked_at, self.answer = time.monotonic(), self.is_over(which)
        return self.answer

    def processes(self, what: str) -> list[int]:
        """Return the process IDs of the running processes of one kind; `what` is "a rank" or another word of WHAT."""
        found = self.cluster.processes()
        words = {
            "a rank": rf"^\S*python\S* -u train\.py .*{self.trust.link}",
            "srun": rf"^srun .*{self.trust.link}",
            "slurmstepd": rf"^slurmstepd: \[{self.ids[-1]}\.\d",
            "job script": r"^/bin/bash \S*slurm_script ",
        }
        # srun and the job script have children with the same command line; the first process is the parent.
        alive = sorted(pid for pid, command in found.items() if re.search(words[what], command))
        return alive[:1] if what in ("srun", "job script") else alive

    def log(self) -> str:
        """Return the logs of all starts."""
        return "".join(map(self.cluster.log, self.ids))


class Fault(NamedTuple):
    """A fault and its effect."""

    what: str
    how: str
    phase: str
    noticed_s: float | None  # seconds until the start ended; None if it survived the fault
    num_repeated: int  # number of steps that the next start has to repeat


def take_away(job: Job, which: str, draw: random.Random, among: Sequence[str]) -> tuple[str, str, str, float] | None:
    """Cause a fault. Return its target, its kind, its node and its time, or None if the start ended before."""
    what, node, began = draw.choice(among), draw.choice(sorted(job.cluster.nodes)), time.monotonic()
    if what == "link":
        job.cluster.network.cut(node)
        time.sleep(draw.uniform(0, CUT_S))
        job.cluster.network.heal(node)
        return what, "cut for a while", node, began
    if what == "disk" and draw.random() < 0.5:
        fill(job.workdir.parent / "filler", draw.uniform(0, CUT_S))
        return what, "full for a while", node, began
    if what == "disk":
        job.mark.touch()
        time.sleep(draw.uniform(0, CUT_S))
        job.mark.unlink()
        return what, "failing for a while", node, began
    if what == "node":
        job.cluster.kill_node(node, is_power_lost=True)
        return what, "killed", node, began
    while not (alive := job.processes(what)):
        if job.is_over(which):
            return None
        time.sleep(0.05)
    began = time.monotonic()
    try:
        return what, kill_one(draw.choice(alive), draw), node, began
    except ProcessLookupError:  # the process has exited meanwhile
        return None


def until_noticed(job: Job, which: str, lost: str, began: float) -> float | None:
    """Wait until the start ends; return the seconds since `began`. Return None if it survives or finishes the run."""
    step = last_step(job.workdir)
    while not job.is_over(which):
        if last_step(job.workdir) > step + ALONE_STEPS:
            return None
        assert time.monotonic() - began < UNNOTICED_S, (
            f"start {which} neither ends nor makes progress after a fault of {lost}"
        )
        time.sleep(0.1)
    return None if (job.workdir / "done").exists() else time.monotonic() - began


def strike(job: Job, which: str, draw: random.Random, surroundings: ExitStack) -> str | None:
    """Cause a random fault of TRUST, or none; return its name or None. `surroundings` restores a changed teacher."""
    fault = draw.choice(TRUST)
    if fault == "stale teacher" and not latest_step(job.workdir):  # without a checkpoint, a run accepts any teacher
        return None
    if fault == "stale teacher":
        surroundings.enter_context(job.trust.changed_teacher())
    job.trust.strike(fault, lambda: (job.workdir / "lock").exists() and not job.is_over(which))
    if fault == "link":
        time.sleep(draw.uniform(0, REPOINTED_S))
        job.trust.place("link")
    return fault


def until_refused(job: Job) -> None:
    """Wait until the job has ended. If it has failed, check that the changed teacher was the reason."""
    job.cluster.until_state(job.ids[-1], *FINAL, timeout_s=UNSTARTED_S)
    if job.current()[1] == "FAILED":
        assert "teacher.checkpoint changed" in job.log(), job.log()[-3000:]


def wait_for_end(job: Job, draw: random.Random, was_over: Callable[[], bool], *, is_new: bool) -> str | None:
    """Wait for a random moment after the last step. Return "ending", or None if the start ended before."""
    before = log_file(job.workdir) if is_new else None
    while last_step(job.workdir) < job.steps or log_file(job.workdir) == before:
        if was_over():
            return None
        time.sleep(0.02)
    time.sleep(draw.uniform(0, ENDING_S))
    return "ending"


def make_faults(job: Job, num_faults: int, draw: random.Random, *, start_s: float, step_s: float) -> Iterator[Fault]:
    """Cause one fault after another until the run is finished; yield each."""
    number, before = 0, None
    while which := job.until_running():
        was_over, is_new = partial(job.was_over, which), which != before
        if number < num_faults:
            phase = wait_for_moment(job.workdir, start_s, step_s, draw, was_over, is_new=is_new)
        else:
            phase = wait_for_end(job, draw, was_over, is_new=is_new)
        if number >= num_faults + NUM_ENDINGS:
            phase = None
            while not job.is_over(which):
                time.sleep(0.5)
        before = which
        with ExitStack() as surroundings:
            fault = strike(job, which, draw, surroundings) if phase else None
            taken = take_away(job, which, draw, ("a rank",) if phase == "ending" else WHAT) if phase else None
            if taken is None:
                continue
            what, how, node, began = taken
            noticed_s = until_noticed(job, which, what, began)
            steps = last_step(job.workdir), latest_step(job.workdir)
            if what == "node":
                job.cluster.start_node(node)
            if fault == "stale teacher" and noticed_s is not None:
                until_refused(job)
        job.trust.check()
        became = "the run continued" if noticed_s is None else f"the start ended after {noticed_s:.1f} s"
        number += 1
        described = f"{what}, {how}, {fault or 'no other'}"
        print(
            f"fault {number} while {phase}, {described}: {became}; (step, checkpoint) {steps}, start {which}",
            flush=True,
        )
        yield Fault(what, how, phase, noticed_s, 0 if noticed_s is None else max(0, steps[0] - steps[1]))


def chaos(args, folder) -> dict:
    """Make the undisturbed run and then the run with faults; return the report as a dict."""
    reason = slurm.why_not() or network.why_not()
    if reason:
        raise SystemExit(f"--slurm does not work on this machine: {reason}")
    if args.ranks != 2:
        raise SystemExit(f"--ranks must be 2 with --slurm (one rank per node), got {args.ranks}")
    draw, steps = random.Random(args.seed), STEPS_PER_FAULT * args.kills
    with small_disk(folder / "disk") as disk, Network(num_nodes=2) as links:
        trust = Trust(folder, disk / "chaos")
        calm_s, start_s, step_s = calm_run(args, folder, steps, trust.option)
        trust.copy_other(folder / "calm")
        cluster = Cluster(folder / "slurm", 2, links)
        cluster.environ["GLOO_SOCKET_IFNAME"] = INTERFACE
        try:
            cluster.start()
            job = Job(cluster, trust, steps)
            # A job imports everything twice: describe_run.py runs before the training.
            faults = list(make_faults(job, args.kills, draw, start_s=2 * start_s, step_s=step_s))
            told, num_starts = re.findall(r"phase ([a-z ]+), after", job.log()), job.log().count("start: run folder")
        finally:
            cluster.stop()
        compared = compare(job.workdir, folder / "calm", steps)
    unasked = [fault for fault in faults if fault.how != "asked to end"]
    noticed_s = {what: [fault.noticed_s for fault in unasked if fault.what == what] for what in sorted(set(WHAT))}
    return {
        "kills": len(faults), "what": count([f"{fault.what}, {fault.how}" for fault in faults]),
        "went_on": count([f"{fault.what}, {fault.how}" for fault in faults if fault.noticed_s is None]),
        "while": count([fault.phase for fault in faults]), "phases_of_the_others": count(told),
        "noticed_s": {what: summary(seconds) for what, seconds in noticed_s.items()},
        "submitted": len(job.ids), "starts": num_starts, "steps_repeated": sum(fault.num_repeated for fault in faults),
        "seed": args.seed, "calm_run_s": calm_s,
    } | compared  # fmt: skip


def summary(seconds: list) -> dict[str, float]:
    """Return mean and maximum of the values that are not None, or {} if all are None."""
    there = [each for each in seconds if each is not None]
    return {"mean": sum(there) / len(there), "max": max(there)} if there else {}
