"""Virtual hosts with network links. `benchmarks/scaling.py` limits their rate, and `tests/slurm` cuts them.

Each host is a network namespace. One more namespace, the hub, has a bridge that connects the hosts. The machine's own
namespace gets no interface, address or route. Therefore no traffic leaves this network, and no other traffic is
counted.
"""

import os
import shutil
import subprocess

HUB = "ctl"
INTERFACE = "eth0"
"""Name of the network interface of each node."""


def why_not(*programs: str) -> str:
    """Return why virtual hosts do not work on this machine, or "" if they do. They need `ip` and `programs`."""
    missing = [program for program in ("ip", *programs) if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2, util-linux; or as root `sh .ci/test_programs`)"
    trial = _name("trial")
    commands = (f"ip netns add {trial}", f"ip -n {trial} link add type veth", f"ip -n {trial} link add type bridge",
                "unshare --mount --uts true", f"ip netns del {trial}")  # fmt: skip
    done = [subprocess.run(command.split(), capture_output=True, text=True) for command in commands]
    failed = [each.stderr.strip() for each in done if each.returncode]
    return f"network namespaces are not permitted (they need root): {'; '.join(failed)}" if failed else ""


class Network:
    """A hub, and the nodes node1, node2, ..., each linked to it. They exist until the end of the `with` block.

    Args:
        num_nodes: Number of nodes; 0 for only the hub, whose loopback carries no other traffic.
        mbit: Sending rate of each node, in Mbit/s; None for no limit.
    """

    def __init__(self, num_nodes: int, mbit: int | None = None) -> None:
        self.nodes = [f"node{i + 1}" for i in range(num_nodes)]
        self.addresses = {HUB: "10.78.0.254"} | {node: f"10.78.0.{i + 1}" for i, node in enumerate(self.nodes)}
        self.mbit = mbit

    def on(self, host: str) -> list[str]:
        """Return the words to put before a command so that it runs on `host`, a node or the hub."""
        return ["ip", "netns", "exec", _name(host)]

    def cut(self, node: str) -> None:
        """Cut the node's link in both directions."""
        _call(f"ip -n {_name(HUB)} link set {node} down")

    def heal(self, node: str) -> None:
        """Restore the node's link after `cut`."""
        _call(f"ip -n {_name(HUB)} link set {node} up")

    def __enter__(self) -> "Network":
        try:
            for host in self.addresses:
                _call(f"ip netns add {_name(host)}")
                _call(f"ip -n {_name(host)} link set lo up")
            _call(f"ip -n {_name(HUB)} link add bridge type bridge")
            _call(f"ip -n {_name(HUB)} addr add {self.addresses[HUB]}/24 dev bridge")
            _call(f"ip -n {_name(HUB)} link set bridge up")
            for node in self.nodes:
                self._connect(node)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _connect(self, node: str) -> None:
        _call(f"ip -n {_name(HUB)} link add {node} type veth peer name {INTERFACE} netns {_name(node)}")
        _call(f"ip -n {_name(HUB)} link set {node} master bridge up")
        _call(f"ip -n {_name(node)} addr add {self.addresses[node]}/24 dev {INTERFACE}")
        _call(f"ip -n {_name(node)} link set {INTERFACE} up")
        if self.mbit is not None:
            # The bucket holds 2 ms of traffic, so the initial burst is short compared with a collective.
            limit = f"rate {self.mbit}mbit burst {max(100_000, self.mbit * 250)} latency 100ms"
            _call(f"tc -n {_name(node)} qdisc add dev {INTERFACE} root tbf {limit}")

    def __exit__(self, *error: object) -> None:
        for host in self.addresses:
            subprocess.run(["ip", "netns", "del", _name(host)], capture_output=True)


def _name(host: str) -> str:
    return f"vitkd-{os.getpid()}-{host}"


def _call(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{command}` failed: {done.stderr.strip()}")
