"""Shared fixtures and helpers: data packed once per session, real processes as ranks, comparison of runs."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from tests import warm

ROOT = Path(__file__).parents[1]
pytest_plugins = ["tests.guard", "tests.releases", "tests.tiers", "tests.workers"]

warm.install()

for name, number in {"few": 20, "many": 300}.items():
    # derandomize: failures are repeatable. Health checks off: a test reuses its fixtures for all examples.
    settings.register_profile(
        name, max_examples=number, database=None, deadline=None, derandomize=True, suppress_health_check=HealthCheck
    )
settings.load_profile("few")

# A shell that starts pytest in the background ignores SIGINT, and child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Escape file names that are not UTF-8 in a test's output, because workers send their reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _warm_children(request):
    warm.is_on = request.node.get_closest_marker("cold") is None


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory):
    """Return this session's cache folder for the packaged images."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["VITKD_DS_CACHE"] = str(folder)
    yield folder
    del os.environ["VITKD_DS_CACHE"]


PORTS = itertools.cycle(range(10_000, 20_000))
"""Ports below the kernel's ephemeral range, so that no other process is assigned one of them in between."""
for _ in range(os.getpid() * 101 % 10_000):  # each worker starts at another port
    next(PORTS)


def free_port() -> str:
    for port in PORTS:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return str(port)


def start_ranks(world_size, *command, cwd=ROOT, environ=None):
    """Start `python COMMAND` once per rank with a launcher's variables; stdout and stderr share a pipe."""
    port = free_port()
    env = os.environ | {
        "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
    } | (environ or {})  # fmt: skip
    options = {"cwd": cwd, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    words = [sys.executable, *map(str, command)]
    numbers = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
    return [subprocess.Popen(words, env=env | number, **options) for number in numbers]


def finish_ranks(processes, timeout=240, codes=None):
    """Wait for all ranks and return their output; fail if one hangs or exits with a code other than expected (0)."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    found, said = [process.returncode for process in processes], "\n".join(output[-4000:] for output in outputs)
    assert found == (codes or [0] * len(processes)), f"exit codes {found}\n{said}"
    return outputs


def run_command(*command, cwd=ROOT, timeout=240, check=True, **environ):
    """Run a command as a user would, without a launcher's variables."""
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}", "DS_ACCELERATOR": "cpu"} | environ
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout)
    assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


def run_several(world_size, file, commands, timeout=240):
    """Run several train.py commands in the same processes; return each one's summary, error and rank 0's messages."""
    file.write_text(json.dumps([list(map(str, options)) for options in commands]))
    finish_ranks(start_ranks(world_size, "-m", "tests.several", file), timeout)
    return json.loads(file.read_text())


@pytest.fixture
def workdir(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="session")
def small_beton(tmp_path_factory):
    """Pack 60 random images in the demo's 10 classes: 7 updates of 8 images per epoch."""
    from vitkd_ds.commands.pack import pack
    from vitkd_ds.data.demo import CLASSES

    folder = tmp_path_factory.mktemp("small")
    pixels = np.random.default_rng(0)
    for name in CLASSES:
        (folder / "images" / name).mkdir(parents=True)
        for i in range(6):
            image = Image.fromarray(pixels.integers(0, 256, (28, 28, 3), dtype=np.uint8))
            image.save(folder / "images" / name / f"{i}.png")
    pack(folder / "images", folder / "small.beton", write_mode="raw", max_resolution=0)
    return folder / "small.beton"


def everything_on(workdir, data):
    """Return options of a run with all resumable features: average, drop path, mixing, accumulation, a schedule."""
    return [
        "--recipe=demo", "--debug", f"--workdir={workdir}", f"--data.train={data}", "--max_steps=30",
        "--global_batch_size=8", "--micro_batch_size_per_gpu=2", "--checkpoint.every_steps=4", "--optim.ema_decay=0.9",
        "--optim.lr=0.002", "--student.drop_path_rate=0.2", "--augment.mixup_alpha=0.8", "--augment.cutmix_alpha=1",
        "--losses.nkd.schedule=cosine", "--eval_every_epochs=1",
    ]  # fmt: skip


def wait_until(condition, processes, timeout=150):
    deadline = time.monotonic() + timeout
    while not condition():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0][-4000:]
        assert time.monotonic() < deadline, f"the condition is still false after {timeout} s"
        time.sleep(0.005)


def wait_for_steps(processes, workdir, num_lines):
    log = workdir / "metrics.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= num_lines, processes)


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numerics_of(workdir):
    from vitkd_ds.train.log import OF_THE_MACHINE

    return [{key: value for key, value in line.items() if key not in OF_THE_MACHINE} for line in metrics_of(workdir)]


def assert_same_result(workdir, other):
    """Assert that two runs logged the same numbers and exported the same student, bit for bit."""
    assert numerics_of(workdir) == numerics_of(other)
    assert (workdir / "student.safetensors").read_bytes() == (other / "student.safetensors").read_bytes()


@pytest.fixture(scope="session")
def observed(demo_cache):
    """Return the observations of tests/engine/observe.py and each rank's output, for 1 and for 2 ranks."""
    with tempfile.TemporaryDirectory() as top:  # pytest's own folders are closed to other users
        Path(top).chmod(0o755)
        started = []
        for world_size in (1, 2):
            Path(top, f"{world_size}").mkdir()
            started += start_ranks(world_size, "-m", "tests.engine.observe", Path(top, f"{world_size}"))
        said = finish_ranks(started)
        one, two = (json.loads(Path(top, name, "seen.json").read_text()) for name in "12")
    return {1: one | {"said": said[:1]}, 2: two | {"said": said[1:]}}


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, small_beton, demo_cache):
    """Return the folder of an uninterrupted run on two ranks."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    finish_ranks(start_ranks(2, "train.py", *everything_on(workdir, small_beton)))
    return workdir


@pytest.fixture
def vitkd_ds(monkeypatch, capsys):
    """Return a function that runs the console script in this process and returns its stdout."""
    from vitkd_ds import cli

    monkeypatch.setattr(cli.signals, "listen", lambda: None)  # keep the tests' signal handlers

    def run(*words, main=cli.main):
        monkeypatch.setattr("sys.argv", ["vitkd-ds", *map(str, words)])
        main()
        return capsys.readouterr().out

    return run
