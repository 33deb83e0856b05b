"""Put each mistake into a copy of the tree, one at a time, and run the test that must fail: `make mistakes`.

Words after the command choose the mistakes whose file, new text or test has one of them. The test must pass on the copy
as it is. A mistake is caught by a test that fails (exit code 1), also at its time limit, and by nothing else: neither
by a module that does not import nor by a test that is gone. Slow packages are imported once, and each test runs in a
fork of this process.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from tests.mistakes import Mistake, all_mistakes

ROOT = Path(__file__).parents[2]
SLOW_PACKAGES = (
    "numpy", "torch", "torchvision", "timm", "PIL.Image", "safetensors.torch", "deepspeed", "ffcv", "pytest",
    "pytest_timeout", "torch._inductor", "torch.distributed._functional_collectives", "torch.utils.flop_counter",
)  # fmt: skip
LIMIT_S, TIMES, GRACE_S = 20, 4, 10
"""Least time limit of a test with a mistake, how many times as long as without it that is, and how much later the
process is killed if the test itself does not end."""
FIRST_LIMIT_S = 280
PASSED, FAILED = 0, 1
"""Exit codes of pytest."""


class Outcome(NamedTuple):
    """What became of a test."""

    code: int
    """pytest's, or less than 0 if it was killed."""
    seconds: float
    output: str


def copy_tree(target: Path) -> None:
    """Copy what git tracks or would, and the compiled libraries, and compile Python so that no time stamp counts."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    paths = [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    for path in paths + [library.relative_to(ROOT) for library in ROOT.glob("vitkd_ds/data/beton/*.so")]:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "vitkd_ds", "tests"]
    subprocess.run(command, cwd=target, check=True)


def run_test(test: str, copy: Path, *, limit_s: float, has_mistake: bool) -> Outcome:
    """Run one test, or the tests of a file, in a fork of this process that imports the copy."""
    output, start = copy.parent / "output", time.monotonic()
    gc.freeze()  # or each fork would copy what its collector marks
    child = os.fork()
    if not child:
        _run_in_child(test, copy, output, limit_s=limit_s, has_mistake=has_mistake)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        if time.monotonic() - start > limit_s + GRACE_S:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    try:
        os.killpg(child, signal.SIGKILL)  # what the test left behind
    except ProcessLookupError:
        pass
    return Outcome(os.waitstatus_to_exitcode(status), time.monotonic() - start, output.read_text(errors="replace"))


def _run_in_child(test: str, copy: Path, output: Path, *, limit_s: float, has_mistake: bool) -> None:
    code = 70  # of a failure here, which is none of a test
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # others would be imported by each fork
        sys.dont_write_bytecode = has_mistake
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "vitkd_ds")]:
            del sys.modules[name]
        import pytest
        import pytest_timeout

        options = ["-x", "-p", "no:cacheprovider", f"--timeout={limit_s:g}"]
        options += ["--rootdir", str(copy), "--basetemp", str(copy.parent / "tmp")]
        code = int(pytest.main([f"tests/{test}", *options], plugins=[pytest_timeout]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def try_mistake(mistake: Mistake, copy: Path, *, seconds: float) -> tuple[str, str]:
    """Put a mistake in, run its test, and take it out; the verdict, and the test's output."""
    path = copy / "vitkd_ds" / mistake.file
    text = path.read_text()
    if text.count(mistake.old) != 1:
        return f"stands {text.count(mistake.old)} times in its file", ""
    path.write_text(text.replace(mistake.old, mistake.new))
    try:
        compile(path.read_text(), path, "exec")
        outcome = run_test(mistake.test, copy, limit_s=max(LIMIT_S, TIMES * seconds), has_mistake=True)
    finally:
        path.write_text(text)
    verdicts = {PASSED: "survived", FAILED: "caught"}
    return verdicts.get(outcome.code, f"ended with exit code {outcome.code}"), outcome.output


def show(number: int, mistake: Mistake, verdict: str) -> None:
    """Print one mistake that was not caught, or was although a reason says that it is not."""
    print(f"{number}. vitkd_ds/{mistake.file}: {verdict}\n  - {mistake.old}\n  + {mistake.new}\n  {mistake.test}")
    if mistake.reason:
        print(f"  known: {mistake.reason}")


def main(words: list[str]) -> int:
    """Try all mistakes, or those chosen; 1 if one was not caught and no reason is known."""
    for name in SLOW_PACKAGES:
        __import__(name)
    chosen = [each for each in all_mistakes() if not words or any(word in "\n".join(each) for word in words)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)  # some tests start processes of other users
        copy = Path(top, "copy")
        copy_tree(copy)
        seconds, num_caught, num_known, num_bad = {}, 0, 0, 0
        for number, mistake in enumerate(chosen, start=1):
            if mistake.test not in seconds:
                outcome = run_test(mistake.test, copy, limit_s=FIRST_LIMIT_S, has_mistake=False)
                seconds[mistake.test] = outcome.seconds
                if outcome.code != PASSED:
                    print(outcome.output[-3000:])
                    print(f"{mistake.test} must pass without a mistake, found exit code {outcome.code}", flush=True)
                    seconds[mistake.test] = None
            if seconds[mistake.test] is None:
                verdict, output = "its test does not pass without it", ""
            else:
                verdict, output = try_mistake(mistake, copy, seconds=seconds[mistake.test])
            num_caught += verdict == "caught"
            is_known = verdict == "survived" and bool(mistake.reason)
            num_known += is_known
            if verdict != "caught" or mistake.reason:
                show(number, mistake, verdict)
            if verdict not in ("caught", "survived"):
                print(output[-2000:])
            num_bad += not is_known and (verdict != "caught" or bool(mistake.reason))
            print(f"{number} of {len(chosen)}, {num_caught} caught", file=sys.stderr, flush=True)
    print(
        f"{len(chosen)} mistakes, {len(seconds)} tests, {time.monotonic() - start:.0f} s: {num_caught} caught, ", end=""
    )
    print(f"{num_known} survive for a known reason, {num_bad} must be looked at")
    return int(num_bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
