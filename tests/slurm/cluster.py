"""A real Slurm cluster of virtual nodes, each with its own `scratch` disk; the GPUs are copies of /dev/null."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator

import pytest

from benchmarks.network import HUB as CONTROLLER
from benchmarks.network import Network
from tests.conftest import ROOT, free_port

GPUS_PER_NODE = 2

CONFIGURATION = """
ClusterName=vitkd SlurmctldHost={host}({address}) SlurmUser=root SlurmdUser=root AuthType=auth/none CredType=cred/none
AuthInfo=cred_expire=5 SlurmctldPort={port} SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log StateSaveLocation={folder}/state SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log SlurmdSpoolDir={folder}/spool/%n SlurmdParameters=config_overrides MpiDefault=none
ProctrackType=proctrack/linuxproc TaskPlugin=task/none JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres SelectTypeParameters=CR_CPU GresTypes=gpu ReturnToService=2 KillWait=30 SlurmdTimeout=15
JobRequeue=1 FirstJobId={first_job} PreemptType=preempt/partition_prio PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=100000
"""
"""With cred_expire and the scheduler intervals a requeued job restarts after 7 s instead of 120."""
LOOPBACK_ONLY = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny"
ON_NODE = 'mount --bind "$1" "$2" && { [ "$5" = "" ] || hostname "$4"; } && exec slurmd -D -f "$3" -N "$4"'


def why_not() -> str:
    programs = "slurmctld slurmd sbatch srun scontrol".split()
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"SLURM NOT TESTED: {', '.join(missing)} not installed; run `sh .ci/test_programs` as root"
    if os.geteuid() != 0:
        return "SLURM NOT TESTED: Slurm without munge needs root"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "SLURM NOT TESTED: `unshare --mount` is not permitted on this machine"
    return ""


class Cluster:
    """Slurm cluster of nodes node1, node2, ... in an empty folder, on a network or on the loopback; must be stopped."""

    def __init__(self, folder: Path, num_nodes: int, network: Network | None = None) -> None:
        self.folder, self.network = folder, network
        self.nodes = {f"node{i + 1}": free_port() for i in range(num_nodes)}
        self.daemons: dict[str, subprocess.Popen] = {}
        self.scratch = folder / "scratch"
        """Folder where each node sees its own disk; on the host that disk is `disk(node)`."""
        foreign = ("SLURM", "SBATCH", "RANK")
        self.environ = {key: text for key, text in os.environ.items() if not key.startswith(foreign)}
        self.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable, "DS_ACCELERATOR": "cpu",
                         "OMP_NUM_THREADS": "1"}  # fmt: skip

    def start(self) -> None:
        for name in ("state", "scratch", "gpus", *(f"spool/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._configure()
        self._daemon("slurmctld", *self._on(CONTROLLER), "slurmctld", "-D", "-f", self.folder / "slurm.conf")
        for node in self.nodes:
            self.start_node(node)
        try:
            self.until(lambda: self.states() == {"idle"}, "all nodes are idle", 60)
        except AssertionError as error:
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
            raise AssertionError(f"{error}\n{logs}") from None

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        addresses = self.network.addresses if self.network else dict.fromkeys([*self.nodes, CONTROLLER], "127.0.0.1")
        text = CONFIGURATION if self.network else CONFIGURATION + LOOPBACK_ONLY
        # A job's ports and folders depend on its number, so the clusters of two workers must use different numbers.
        first_job = 1 + 100 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        values = {"host": host, "address": addresses[CONTROLLER], "port": free_port(), "folder": self.folder}
        lines = text.format(first_job=first_job, **values).split()
        gres = ["AutoDetect=off"]
        for node, port in self.nodes.items():
            self.disk(node).mkdir()
            address = f"NodeHostname={node if self.network else host} NodeAddr={addresses[node]} Port={port}"
            lines.append(f"NodeName={node} {address} CPUs=32 RealMemory=8000 Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN")
            for i in range(GPUS_PER_NODE):
                gpu = self.folder / "gpus" / f"{node}_{i}"
                self.call("mknod", gpu, "c", "1", "3")
                gres.append(f"NodeName={node} Name=gpu File={gpu}")
        lines.append("PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30")
        lines.append("PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF")
        (self.folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "gres.conf").write_text("\n".join(gres) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    def disk(self, node: str) -> Path:
        return self.folder / f"disk_{node}"

    def start_node(self, node: str) -> None:
        own = ["--mount", *(["--uts"] if self.network else [])]
        words = [self.disk(node), self.scratch, self.folder / "slurm.conf", node, "named" if self.network else ""]
        self._daemon(node, *self._on(node), "unshare", *own, "sh", "-c", ON_NODE, "sh", *words)

    def _on(self, host: str) -> list[str]:
        return self.network.on(host) if self.network else []

    def kill_node(self, node: str, *, is_power_lost: bool) -> None:
        """Kill a node's slurmd, and with `is_power_lost` all other processes on the node too."""
        disk = _mounts(self.daemons[node].pid)
        on_node = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _mounts(pid) == disk]
        self.daemons[node].kill()
        self.daemons[node].wait()
        for pid in on_node if is_power_lost else ():
            kill(pid)

    def _daemon(self, name: str, *command: object) -> None:
        quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        self.daemons[name] = subprocess.Popen(list(map(str, command)), env=self.environ, cwd="/", **quiet)

    def stop(self) -> None:
        """Kill all processes that have this cluster's folder in their environment or command, or see its disks."""
        with suppress(subprocess.TimeoutExpired):
            self.call("scancel", "--user=root", check=False)
        with suppress(AssertionError):
            self.until(lambda: not self.processes("train.py"), "no rank runs", 10)
        for _ in range(50):
            left = self.processes()
            for pid in left:
                kill(pid)
            if not left:
                break
            time.sleep(0.1)
        assert not left, f"processes of the test cluster are still running: {left}"
        for daemon in self.daemons.values():
            daemon.wait()

    def processes(self, word: str = "") -> dict[int, str]:
        mark, disks = bytes(self.folder), {_mounts(daemon.pid) for daemon in self.daemons.values()} - {_mounts("self")}
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):  # it has exited, or may not be read
                command = Path("/proc", pid, "cmdline").read_bytes()
                if mark in command + Path("/proc", pid, "environ").read_bytes() or _mounts(pid) in disks - {None}:
                    found[int(pid)] = command.replace(b"\0", b" ").decode(errors="replace")
        return {pid: command for pid, command in found.items() if command and word in command and pid != os.getpid()}

    def call(self, *command: object, check: bool = True) -> str:
        words = [*self._on(CONTROLLER), *map(str, command)]
        done = subprocess.run(words, env=self.environ, cwd=ROOT, text=True, capture_output=True, timeout=240)
        assert not check or done.returncode == 0, f"{words}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout

    def states(self) -> set[str]:
        return set(self.call("sinfo", "-h", "-N", "-o", "%t", check=False).split())

    def submit(self, *command: object) -> str:
        return self.call("sbatch", "--parsable", f"--output={self.folder}/job-%j.log", *command).strip()

    def log(self, job: str) -> str:
        path = self.folder / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def job(self, job: str) -> dict[str, str]:
        words = self.call("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float, job: str = "") -> None:
        """Poll until `condition()` holds; on a timeout fail with the job's log."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                told = f"\n{self.job(job)}\n{self.log(job)[-6000:]}" if job else ""
                raise AssertionError(f"not within {timeout_s} s: {what}{told}")
            time.sleep(0.1)

    def until_state(self, job: str, *states: str, timeout_s: float = 240) -> None:
        self.until(lambda: self.job(job)["JobState"] in states, f"{job} is {states}", timeout_s, job)

    def until_logged(self, job: str, text: str, times: int = 1, timeout_s: float = 240) -> None:
        self.until(lambda: self.log(job).count(text) >= times, f"{text!r} in the log", timeout_s, job)


@contextmanager
def running_cluster(folder: Path, network: Network | None = None) -> Iterator[Cluster]:
    """Start a Slurm cluster of two nodes; skip the test if Slurm cannot run."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Cluster(folder, 2, network)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _mounts(pid: object) -> int | None:
    """The number of a process's mount namespace, None if it has ended."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
