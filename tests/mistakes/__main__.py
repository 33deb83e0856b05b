"""Put each mistake into a copy of the tree, one at a time, and run the test that must fail: `make mistakes`.

Words after the command choose the mistakes whose file, function, new text or test has one of them. MISTAKES_JOBS is
the number of worker processes, by default 1; each has its own copy. The test must pass on the copy without a mistake.
Only a test that fails (exit code 1) catches a mistake; reaching its time limit is a failure. A module that does not
import or a missing test catches nothing. The last line says how many mistakes are caught by tests of `make test`.
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
"""This worker's copy of the tree."""


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
    """Put a mistake in, run its test, and take it out."""
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
    """Try mistakes that have the same test."""
    outcome = run_tests([mistakes[0].test], _copy, limit_s=FIRST_LIMIT_S, options=["-x"], is_changed=False)
    if outcome.code != PASSED:
        verdict = f"its test does not pass without it (exit code {outcome.code})"
        return [Tried(mistake, verdict, outcome.output) for mistake in mistakes]
    return [try_mistake(mistake, seconds=outcome.seconds) for mistake in mistakes]


def by_test(mistakes: list[Mistake]) -> list[list[Mistake]]:
    """Mistakes with the same test together, in the order of the tests' names."""
    groups = {}
    for mistake in sorted(mistakes, key=lambda mistake: mistake.test):
        groups.setdefault(mistake.test, []).append(mistake)
    return [*groups.values()]


def is_as_expected(tried: Tried) -> bool:
    """Whether the mistake is caught, or survives for a known reason."""
    return tried.verdict == ("survived" if tried.mistake.reason else "caught")


def show(tried: Tried) -> None:
    """Print a mistake that was not caught, or that was caught although it has a reason to survive."""
    mistake = tried.mistake
    name = f"{mistake.file} {mistake.where}".strip()
    print(f"vitkd_ds/{name}: {tried.verdict}\n  - {mistake.old}\n  + {mistake.new}\n  {mistake.test}")
    if mistake.reason:
        print(f"  known: {mistake.reason}")
    if tried.verdict not in VERDICTS.values():
        print(tried.output[-2000:])
    sys.stdout.flush()


def fast_ones(tests: set[str]) -> set[str]:
    """The tests, or files of tests, of which `make test` runs at least one."""
    files = sorted({test.partition("::")[0] for test in tests})
    names = collect(_copy, files, marker_expression("test"))
    known = {*names, *(name.partition("[")[0] for name in names), *(name.partition("::")[0] for name in names)}
    return tests & known


def summary(all_tried: list[Tried], fast: set[str], *, seconds: float) -> str:
    """The counts of a run."""
    verdicts = Counter((tried.verdict, is_as_expected(tried)) for tried in all_tried)
    num_caught = verdicts["caught", True] + verdicts["caught", False]
    num_bad = sum(not is_as_expected(tried) for tried in all_tried)
    num_fast = sum(tried.verdict == "caught" and tried.mistake.test in fast for tried in all_tried)
    num_due = sum(not tried.mistake.reason for tried in all_tried)
    return (
        f"{len(all_tried)} mistakes, {len({tried.mistake.test for tried in all_tried})} tests, {seconds:.0f} s: "
        f"{num_caught} caught, {verdicts['survived', True]} survive for a known reason, {num_bad} must be looked at\n"
        f"make test catches {num_fast} of {num_due} ({100 * num_fast / max(num_due, 1):.1f} %)"
    )


def main(words: list[str]) -> int:
    """Try all mistakes, or the chosen ones; return 1 if one was not caught and no reason is known."""
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
