"""Apply each mistake to a copy of the tree, one at a time, and run the test that must fail: `make mistakes`.

Words on the command line select mistakes whose file, function, code or test contains one of them. MISTAKES_JOBS is the
number of worker processes (default 1), each with its own copy. The test must first pass on the unchanged copy. A
mistake counts as caught only if the test then fails (exit code 1) or reaches its time limit, not if a module cannot be
imported or the test is missing. The last line has the number of mistakes caught by tests of `make test`.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from tests.mistakes import Mistake, all_mistakes
from tests.mistakes.change import changed
from tests.mistakes.trial import (
    FAILED,
    FIRST_LIMIT_S,
    PASSED,
    collect,
    copy_tree,
    limit_of,
    marker_expression,
    prepare,
    run_tests,
)

VERDICTS = {PASSED: "survived", FAILED: "caught"}
_copy = Path()
"""Copy of the tree that belongs to this worker."""


class Tried(NamedTuple):
    """A mistake and the result of its test."""

    mistake: Mistake
    verdict: str
    output: str


def start_worker(top: Path) -> None:
    """Copy the tree for this worker."""
    global _copy
    _copy = top / str(os.getpid()) / "copy"
    copy_tree(_copy)


def try_mistake(mistake: Mistake, *, seconds: float) -> Tried:
    """Apply a mistake, run its test, and undo the mistake."""
    path = _copy / "vitkd_ds" / mistake.file
    text = path.read_text()
    try:
        path.write_text(changed(text, mistake.where, mistake.old, mistake.new))
        compile(path.read_text(), path, "exec")
        outcome = run_tests([mistake.test], _copy, limit_s=limit_of(seconds), options=["-x"])
    except (ValueError, SyntaxError) as error:
        return Tried(mistake, str(error), "")
    finally:
        path.write_text(text)
    return Tried(mistake, VERDICTS.get(outcome.code, f"ended with exit code {outcome.code}"), outcome.output)


def try_test(mistakes: list[Mistake]) -> list[Tried]:
    """Try all mistakes of one test."""
    outcome = run_tests([mistakes[0].test], _copy, limit_s=FIRST_LIMIT_S, options=["-x"], is_changed=False)
    if outcome.code != PASSED:
        verdict = f"the test fails without the mistake too (exit code {outcome.code})"
        return [Tried(mistake, verdict, outcome.output) for mistake in mistakes]
    return [try_mistake(mistake, seconds=outcome.seconds) for mistake in mistakes]


def by_test(mistakes: list[Mistake]) -> list[list[Mistake]]:
    """Group mistakes by test, sorted by the tests' names."""
    groups = {}
    for mistake in sorted(mistakes, key=lambda mistake: mistake.test):
        groups.setdefault(mistake.test, []).append(mistake)
    return [*groups.values()]


def is_as_expected(tried: Tried) -> bool:
    """Return whether the mistake was caught, or survived for a known reason."""
    return tried.verdict == ("survived" if tried.mistake.reason else "caught")


def show(tried: Tried) -> None:
    """Print a mistake and its result."""
    mistake = tried.mistake
    name = f"{mistake.file} {mistake.where}".strip()
    print(f"vitkd_ds/{name}: {tried.verdict}\n  - {mistake.old}\n  + {mistake.new}\n  {mistake.test}")
    if mistake.reason:
        print(f"  known reason: {mistake.reason}")
    if tried.verdict not in VERDICTS.values():
        print(tried.output[-2000:])
    sys.stdout.flush()


def fast_ones(tests: set[str]) -> set[str]:
    """Return those tests and test files that `make test` runs at least partly."""
    files = sorted({test.partition("::")[0] for test in tests})
    names = collect(_copy, files, marker_expression("test"))
    known = {*names, *(name.partition("[")[0] for name in names), *(name.partition("::")[0] for name in names)}
    return tests & known


def summary(all_tried: list[Tried], fast: set[str], *, seconds: float) -> str:
    """Return the summary of a run."""
    verdicts = Counter((tried.verdict, is_as_expected(tried)) for tried in all_tried)
    num_caught = verdicts["caught", True] + verdicts["caught", False]
    num_bad = sum(not is_as_expected(tried) for tried in all_tried)
    num_fast = sum(tried.verdict == "caught" and tried.mistake.test in fast for tried in all_tried)
    num_due = sum(not tried.mistake.reason for tried in all_tried)
    return (
        f"{len(all_tried)} mistakes, {len({tried.mistake.test for tried in all_tried})} tests, {seconds:.0f} s: "
        f"{num_caught} caught, {verdicts['survived', True]} survive for a known reason, {num_bad} need attention\n"
        f"make test catches {num_fast} of {num_due} ({100 * num_fast / max(num_due, 1):.1f} %)"
    )


def main(words: list[str]) -> int:
    """Try all mistakes or the selected ones; return 1 if any result is unexpected."""
    prepare()
    chosen = [each for each in all_mistakes() if not words or any(word in "\n".join(each) for word in words)]
    start = time.monotonic()
    jobs = int(os.environ.get("MISTAKES_JOBS", "1"))
    all_tried = []
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)  # some tests start processes of other users
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(jobs, fork, start_worker, [Path(top)]) as pool:
            for future in as_completed([pool.submit(try_test, mistakes) for mistakes in by_test(chosen)]):
                tried_of_test = future.result()
                all_tried += tried_of_test
                for tried in tried_of_test:
                    if tried.verdict != "caught" or tried.mistake.reason:
                        show(tried)
                num_caught = sum(tried.verdict == "caught" for tried in all_tried)
                print(f"{len(all_tried)} of {len(chosen)}, {num_caught} caught", file=sys.stderr, flush=True)
            fast = pool.submit(fast_ones, {mistake.test for mistake in chosen}).result()
    print(summary(all_tried, fast, seconds=time.monotonic() - start))
    return int(not all(is_as_expected(tried) for tried in all_tried))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
