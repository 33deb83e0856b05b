"""Run tests in forks of this process on copies of the tree, where a change to the package can do no harm.

Slow packages are imported once, by `prepare`. A fork imports the package and the tests from its copy.
"""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests import warm

ROOT = Path(__file__).parents[2]
GRACE_S = 10
"""Seconds after the time limit until the process is killed if the test itself does not end."""
LEAST_LIMIT_S = 40
TIMES_AS_LONG = 4
"""Time limit of a test with a change, in units of its time without one; at least LEAST_LIMIT_S, within which ranks as
threads that wait for each other fail (tests/threaded.py)."""
FIRST_LIMIT_S = 280
PASSED = 0
FAILED = 1
NOTHING_RAN = 5
"""Exit codes of pytest."""


class Outcome(NamedTuple):
    """Result of a test run."""

    code: int
    """pytest's exit code; below 0 if the process was killed."""
    seconds: float
    output: str


def prepare() -> None:
    """Import the slow packages and pytest's."""
    for name in ("pytest", "pytest_timeout"):
        __import__(name)
    warm.preload()


def limit_of(seconds: float) -> float:
    """Time limit of a test with a change that took `seconds` without it."""
    return max(LEAST_LIMIT_S, TIMES_AS_LONG * seconds)


def marker_expression(target: str) -> str:
    """Markers that a target of the Makefile passes to pytest."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = re.search(r'\$\(PYTEST\) -m "([^"\n]+)"', recipe[1]) if recipe else None
    if not found:
        raise ValueError(f"Makefile has no pytest -m for the target {target}")
    return found[1]


def copy_tree(target: Path) -> None:
    """Copy all files that git tracks or would track, and the compiled libraries.

    Python files are compiled with checked hashes, so that a change counts even within one second.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    paths = [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    for path in paths + [library.relative_to(ROOT) for library in ROOT.glob("vitkd_ds/data/beton/*.so")]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "vitkd_ds", "tests"]
    subprocess.run(command, cwd=target, check=True)


def run_tests(
    tests: Sequence[str],
    copy: Path,
    *,
    limit_s: float,
    total_s: float | None = None,
    options: Sequence[str] = (),
    environ: dict[str, str] | None = None,
    is_changed: bool = True,
) -> Outcome:
    """Run tests in a fork of this process that imports the copy.

    Args:
        tests: Below tests/, as pytest takes them.
        copy: The copied tree.
        limit_s: Time limit of each test.
        total_s: Time limit of all; by default that of one.
        options: Further options of pytest.
        environ: Further environment variables.
        is_changed: Whether the copy has a change, of which no bytecode may be kept.
    """
    output = copy.parent / "output"
    start = time.monotonic()
    gc.freeze()  # otherwise each fork would copy the memory that its collector marks
    child = os.fork()
    if not child:
        words = [*(f"tests/{test}" for test in tests), f"--timeout={limit_s:g}", *options]
        _run_in_child(words, copy, output, environ or {}, is_changed=is_changed)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - start > (total_s or limit_s) + GRACE_S:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)  # processes that the test left behind
    except ProcessLookupError:
        pass
    return Outcome(os.waitstatus_to_exitcode(status), time.monotonic() - start, output.read_text(errors="replace"))


def _run_in_child(words: list[str], copy: Path, output: Path, environ: dict[str, str], *, is_changed: bool) -> None:
    code = 70  # a failure here, not in a test
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"} | environ
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # each fork would import the other plugins
        sys.dont_write_bytecode = is_changed
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "vitkd_ds")]:
            del sys.modules[name]
        import pytest
        import pytest_timeout

        fixed = ["-o", "addopts=", "-q", "-p", "no:cacheprovider"]
        fixed += ["--rootdir", str(copy), "--basetemp", str(copy.parent / "tmp")]
        code = int(pytest.main([*words, *fixed], plugins=[pytest_timeout]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def collect(copy: Path, tests: Sequence[str], markers: str) -> list[str]:
    """Names of the tests that have the markers, below tests/."""
    outcome = run_tests(tests, copy, limit_s=FIRST_LIMIT_S, options=["--collect-only", "-m", markers], is_changed=False)
    if outcome.code not in (PASSED, NOTHING_RAN):
        raise RuntimeError(f"pytest could not collect the tests (exit code {outcome.code}):\n{outcome.output[-3000:]}")
    return [line.removeprefix("tests/") for line in outcome.output.splitlines() if line.startswith("tests/")]
