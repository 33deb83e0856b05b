"""A network of their own for the nodes of a test cluster, whose links can be cut.

Each node, and the controller, has its own network namespace; a bridge in the controller's joins them. The machine's own
namespace gets no interface, address or route, so nothing here reaches a network outside.
"""

import os
import shutil
import subprocess

CONTROLLER = "ctl"
INTERFACE = "eth0"
"""Of each node."""


def why_not() -> str:
    """Why there can be no such network here, "" if there can."""
    if shutil.which("ip") is None:
        return "NETWORK NOT TESTED: found no ip; as root, `sh .ci/test_programs` installs it"
    trial = f"vitkd-{os.getpid()}-trial"
    commands = (f"ip netns add {trial}", f"ip -n {trial} link add type veth", f"ip -n {trial} link add type bridge")
    done = [subprocess.run(command.split(), capture_output=True, text=True) for command in commands]
    done.append(subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True))
    subprocess.run(["ip", "netns", "del", trial], capture_output=True)
    failed = [each.stderr.strip() for each in done if each.returncode]
    return f"NETWORK NOT TESTED: namespaces are not permitted here: {'; '.join(failed)}" if failed else ""


class Network:
    """Links between the controller and nodes node1, node2, ...; `stop` must be called in every case."""

    def __init__(self, num_nodes: int) -> None:
        self.addresses = {f"node{i + 1}": f"10.78.0.{i + 1}" for i in range(num_nodes)} | {CONTROLLER: "10.78.0.254"}
        self._switch = self._name(CONTROLLER)

    def start(self) -> None:
        """Make the namespaces and join them."""
        for host in self.addresses:
            _call(f"ip netns add {self._name(host)}")
            _call(f"ip -n {self._name(host)} link set lo up")
        _call(f"ip -n {self._switch} link add bridge type bridge")
        _call(f"ip -n {self._switch} addr add {self.addresses[CONTROLLER]}/24 dev bridge")
        _call(f"ip -n {self._switch} link set bridge up")
        for node in self.addresses.keys() - {CONTROLLER}:
            name = self._name(node)
            _call(f"ip -n {self._switch} link add {node} type veth peer name {INTERFACE} netns {name}")
            _call(f"ip -n {self._switch} link set {node} master bridge up")
            _call(f"ip -n {name} addr add {self.addresses[node]}/24 dev {INTERFACE}")
            _call(f"ip -n {name} link set {INTERFACE} up")

    def stop(self) -> None:
        """Remove all of it."""
        for host in self.addresses:
            subprocess.run(["ip", "netns", "del", self._name(host)], capture_output=True)

    def on(self, host: str) -> list[str]:
        """What stands before a command to run it on a node, or on the controller."""
        return ["ip", "netns", "exec", self._name(host)]

    def cut(self, node: str) -> None:
        """Nothing reaches the node any more, and nothing that it sends arrives."""
        _call(f"ip -n {self._switch} link set {node} down")

    def heal(self, node: str) -> None:
        """Undo `cut`."""
        _call(f"ip -n {self._switch} link set {node} up")

    def _name(self, host: str) -> str:
        return f"vitkd-{os.getpid()}-{host}"


def _call(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True)
    assert done.returncode == 0, f"`{command}` failed: {done.stderr.strip()}"
