"""Hosts on one machine, for `benchmarks/scaling.py`: network namespaces, with or without a limited link between them.

The machine's own namespace gets no interface, address or route: the bridge that joins the hosts lies in a namespace
too. So nothing here can reach a network outside, and nothing else's traffic is counted.
"""

import os
import shutil
import subprocess
from types import TracebackType


def why_not() -> str:
    """Why no hosts can be made here, "" if they can."""
    missing = [program for program in ("ip", "tc", "taskset") if shutil.which(program) is None]
    if missing:
        return f"found no {', '.join(missing)} (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "network namespaces are not permitted here"
    return ""


class Hosts:
    """Hosts for so many ranks, gone after the `with` block.

    Args:
        num_hosts: ranks.
        mbit: what each may send, Mbit/s; None: all ranks are on one host and use its loopback, without a limit.
    """

    def __init__(self, num_hosts: int, mbit: int | None) -> None:
        self.num_hosts, self.mbit = num_hosts, mbit
        self.interface = "lo" if mbit is None else "eth0"
        self.address = "127.0.0.1" if mbit is None else "10.77.0.1"
        """Of the first rank."""
        self._switch = f"vitkd-{os.getpid()}-switch"
        self._names = [f"vitkd-{os.getpid()}-{rank}" for rank in range(1 if mbit is None else num_hosts)]

    def on(self, rank: int) -> list[str]:
        """What stands before a command to run it on the host of a rank."""
        return ["ip", "netns", "exec", self._names[rank % len(self._names)]]

    def __enter__(self) -> "Hosts":
        if reason := why_not():
            raise RuntimeError(f"this benchmark makes hosts of its own on this machine: {reason}")
        try:
            for name in (self._switch, *self._names):
                _call(f"ip netns add {name}")
                _call(f"ip -n {name} link set lo up")
            if self.mbit is not None:
                _call(f"ip -n {self._switch} link add bridge type bridge")
                _call(f"ip -n {self._switch} link set bridge up")
                for number, name in enumerate(self._names, start=1):
                    self._connect(number, name)
        except BaseException:
            self._delete()
            raise
        return self

    def _connect(self, number: int, name: str) -> None:
        _call(f"ip -n {self._switch} link add port{number} type veth peer name eth0 netns {name}")
        _call(f"ip -n {self._switch} link set port{number} master bridge up")
        _call(f"ip -n {name} addr add 10.77.0.{number}/24 dev eth0")
        _call(f"ip -n {name} link set eth0 up")
        # The bucket holds 2 ms of traffic: what goes through at once is nothing beside a collective.
        burst_bytes = max(100_000, self.mbit * 250)
        _call(f"tc -n {name} qdisc add dev eth0 root tbf rate {self.mbit}mbit burst {burst_bytes} latency 100ms")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delete()

    def _delete(self) -> None:
        for name in (self._switch, *self._names):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _call(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{command}` failed: {done.stderr.strip()}")
