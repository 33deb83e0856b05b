"""Shared by all tests: the packaged images are packed once, and groups of real processes are started here."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory):
    """A cache folder of this test session for the packaged images."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VITKD_DS_CACHE"] = str(folder)
    yield folder
    del os.environ["VITKD_DS_CACHE"]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def start_ranks(world_size, *command, cwd=ROOT, environ=None):
    """Start `python COMMAND` once per rank with the variables that a launcher sets; stdout and stderr go together."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        } | (environ or {})  # fmt: skip
        processes.append(subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=cwd, env=env, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ))  # fmt: skip
    return processes


def finish_ranks(processes, timeout=240):
    """Wait for all; returns their output. Fails the test, with the output, if one fails or hangs."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * len(processes), f"exit codes {codes}\n" + "\n".join(output[-4000:] for output in outputs)
    return outputs


def run_command(*command, cwd=ROOT, timeout=240, check=True):
    """Run one command as a user would, in the environment of the tests, without a launcher's variables."""
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout)
    if check:
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done
