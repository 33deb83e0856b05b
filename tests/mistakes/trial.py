"""Run tests in forks of this process on copies of the tree, so that changes to the package do no harm.

`prepare` imports the slow packages once. A fork imports the package and the tests from its copy.
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
"""Seconds between a test's time limit and the kill of its process."""
LEAST_LIMIT_S = 40
TIMES_AS_LONG = 4
"""Time limit of a test with a change, as a multiple of its time without one. The minimum is LEAST_LIMIT_S, in which
waiting ranks of tests/threaded.py fail by themselves."""
FIRST_LIMIT_S = 280
PASSED = 0
FAILED = 1
NOTHING_RAN = 5
"""Exit codes of pytest."""


class Outcome(NamedTuple):
    """Result of a test run."""

    code: int
    """pytest's exit code; negative if the process was killed."""
    seconds: float
    output: str


def prepare() -> None:
    """Import pytest and the slow packages."""
    for name in ("pytest", "pytest_timeout"):
        __import__(name)
    warm.preload()


def limit_of(seconds: float) -> float:
    """Return the time limit with a change for a test that takes `seconds` without it."""
    return max(LEAST_LIMIT_S, TIMES_AS_LONG * seconds)


def marker_expression(target: str) -> str:
    """Return the marker expression that a target of the Makefile passes to pytest."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found = re.search(r'\$\(PYTEST\) -m "([^"\n]+)"', recipe[1]) if recipe else None
    if not found:
        raise ValueError(f"the Makefile's target {target} has no `$(PYTEST) -m`")
    return found[1]


def copy_tree(target: Path) -> None:
    """Copy all files that git tracks or would track, and the compiled libraries.

    Python files are compiled with hash-based bytecode, so that two changes within one second are both noticed.
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
        tests: pytest names relative to tests/.
        copy: The copied tree.
        limit_s: Time limit of each test.
        total_s: Time limit of all tests together; the default is `limit_s`.
        options: Additional options for pytest.
        environ: Additional environment variables.
        is_changed: Whether the copy has a change; then no bytecode is written.
    """
    output = copy.parent / "output"
    start = time.monotonic()
    gc.freeze()  # otherwise garbage collection in the fork would copy memory
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
    code = 70  # failure outside pytest
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"} | environ
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # saves importing other plugins in each fork
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
    """Return the names, relative to tests/, of the tests that match the markers."""
    outcome = run_tests(tests, copy, limit_s=FIRST_LIMIT_S, options=["--collect-only", "-m", markers], is_changed=False)
    if outcome.code not in (PASSED, NOTHING_RAN):
        raise RuntimeError(f"pytest could not collect the tests (exit code {outcome.code}):\n{outcome.output[-3000:]}")
    return [line.removeprefix("tests/") for line in outcome.output.splitlines() if line.startswith("tests/")]
