"""Draw random mutants of the package and count those that tests kill: `make mutants N=300 SEED=1`.

Words on the command line select mutants whose file contains one of them. MUTANTS_JOBS is the number of worker processes
(default 1). First, once per state of the tree, all tests run on an instrumented copy, which takes as long as `make
test-all`. Then each mutant is tried with the tests of `make test`, and after them with the others of `make test-all`. A
test kills a mutant if it fails, crashes or reaches its time limit. Both parts write to build/mutants/; rerun the same
command to resume an interrupted run.
"""

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.mistakes.trial import (
    NOTHING_RAN,
    PASSED,
    ROOT,
    collect,
    copy_tree,
    limit_of,
    marker_expression,
    prepare,
    run_tests,
)
from tests.mutants.draw import Mutant, code_of, draw, mutated
from tests.mutants.reach import TimedTest, candidates, digest, instrument, reach_of, record
from tests.mutants.report import TARGETS, Tried, is_equivalent, survivor, table, too_many_equivalent

FOLDER = ROOT / "build" / "mutants"
BATCH = 40
"""Maximum number of tests per fork. They are sorted by time, so one time limit fits all."""
_copies: dict[str, Path] = {}
"""Copies of the tree that belong to this worker."""


def start_worker(top: Path, *, must_record: bool) -> None:
    """Copy the tree for this worker, and make an instrumented copy if tests must be recorded."""
    for name in ("plain", "instrumented") if must_record else ("plain",):
        _copies[name] = top / f"{os.getpid()}_{name}" / "copy"
        copy_tree(_copies[name])
    if must_record:
        instrument(_copies["instrumented"])


def record_file(test_file: str) -> dict:
    """Record which functions the tests of a file reach."""
    markers = marker_expression(TARGETS[-1])
    return record(test_file, _copies["instrumented"], _copies["plain"], markers)


def names_of(files: Sequence[str]) -> list[str]:
    """Return the tests of `make test` in these files."""
    return collect(_copies["plain"], files, marker_expression(TARGETS[0]))


def try_mutant(work: tuple[Mutant, dict[str, list[TimedTest]]]) -> Tried:
    """Apply a mutant, run the tests of each target until one fails, and undo the mutant."""
    mutant, tests_of_target = work
    path = _copies["plain"] / "vitkd_ds" / mutant.file
    text, start, num_tests = path.read_text(), time.monotonic(), 0
    path.write_text(mutated(text, mutant.number))
    try:
        for target, tests in tests_of_target.items():
            for batch in batches(tests):
                if by := killed_by(batch):
                    return Tried(mutant, target, by, time.monotonic() - start, num_tests + len(batch))
                num_tests += len(batch)
    finally:
        path.write_text(text)
    return Tried(mutant, "", "", time.monotonic() - start, num_tests)


def batches(tests: Sequence[TimedTest]) -> list[list[TimedTest]]:
    """Split tests into batches of one fork each; a test with a much higher time limit than a batch's first starts a new
    one."""
    found = []
    for test in tests:
        if found and len(found[-1]) < BATCH and limit_of(test.seconds) <= 2 * limit_of(found[-1][0].seconds):
            found[-1].append(test)
        else:
            found.append([test])
    return found


def killed_by(tests: Sequence[TimedTest]) -> str:
    """Return the test that fails, or "" if all pass."""
    limit_s = max(limit_of(test.seconds) for test in tests)
    outcome = run_tests(
        [test.name for test in tests],
        _copies["plain"],
        limit_s=limit_s,
        total_s=sum(limit_of(test.seconds) for test in tests),
        options=["-x"],
    )
    if outcome.code in (PASSED, NOTHING_RAN):
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", outcome.output, re.MULTILINE)
    return failed[1] if failed else f"exit code {outcome.code} of {tests[0].name} and {len(tests) - 1} more"


class Lines:
    """File of JSON lines, which a resumed run extends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        path.write_text(text[: text.rfind("\n") + 1])  # drops an incomplete line
        self.values = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, value: object) -> None:
        """Append a value to the file."""
        self.values.append(value)
        with self.path.open("a") as file:
            file.write(json.dumps(value) + "\n")


def with_workers(function: Callable, works: Sequence, *, must_record: bool, done: Callable[[object], None]) -> None:
    """Call `function` for each item of `works` in worker processes, and `done` with each result."""
    jobs = int(os.environ.get("MUTANTS_JOBS", "1"))
    if not works:
        return
    with tempfile.TemporaryDirectory() as top:
        Path(top).chmod(0o755)  # some tests start processes of other users
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(jobs, context, _start, [Path(top), must_record]) as pool:
            futures = [pool.submit(function, work) for work in works]
            for number, future in enumerate(as_completed(futures), start=1):
                done(future.result())
                print(f"{function.__name__}: {number} of {len(works)}", file=sys.stderr, flush=True)


def _start(top: Path, must_record: bool) -> None:
    start_worker(top, must_record=must_record)


def recorded(files: Sequence[str]) -> tuple[list[dict], set[str]]:
    """Return the records of test files, recording missing ones, and the names of the tests of `make test`."""
    lines = Lines(FOLDER / f"reach_{digest()}.jsonl")
    known = {value["file"] for value in lines.values}
    missing = [file for file in files if file not in known]
    with_workers(record_file, missing, must_record=True, done=lines.add)
    fast: list[str] = []
    with_workers(names_of, [files], must_record=False, done=fast.extend)
    return [value for value in lines.values if value["file"] in files], set(fast)


def test_files() -> list[str]:
    """Return all test files except those of mistakes and mutants, which read the package's source."""
    top = ROOT / "tests"
    every = sorted(str(path.relative_to(top)) for path in top.rglob("test_*.py"))
    return [file for file in every if file != "test_mistakes.py" and not file.startswith("mutants/")]


def show_failures(records: Sequence[dict]) -> None:
    """Print the tests that fail without a mutant. They are skipped."""
    for value in records:
        failed = [name for name, (_, result) in value["tests"].items() if result == "failed"]
        if failed or value["code"] not in (PASSED, NOTHING_RAN):
            print(f"{value['file']} has exit code {value['code']} without a mutant; skipping: {failed}")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--num", type=int, default=100, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", help="test files to run, relative to tests/ (default: all)")
    parser.add_argument("words", nargs="*", help="only mutants whose file contains one of these words")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Draw and try mutants; return 1 if too many are listed as equivalent."""
    args = arguments(words)
    texts = code_of(ROOT / "vitkd_ds")
    chosen = {file: text for file, text in texts.items() if not args.words or any(word in file for word in args.words)}
    mutants = draw(chosen, args.num, args.seed)
    prepare()
    records, fast = recorded(args.tests or test_files())
    show_failures(records)
    reach = reach_of(records)
    name = "_".join(["seed", str(args.seed), str(args.num), *args.words]).replace("/", "-")
    lines = Lines(FOLDER / f"{name}_{digest()}.jsonl")
    known = {(value["file"], value["number"]) for value in lines.values}
    works = []
    for mutant in mutants:
        if (mutant.file, mutant.number) not in known:
            tests = candidates(mutant, reach)
            slow = [test for test in tests if test.name not in fast]
            works.append((mutant, dict(zip(TARGETS, ([test for test in tests if test.name in fast], slow)))))
    with_workers(try_mutant, works, must_record=False, done=lambda tried: lines.add(_line(tried)))
    all_tried = [_tried(value) for value in lines.values]
    for tried in all_tried:
        if not tried.target:
            print(survivor(tried, texts[tried.mutant.file]) + "\n")
    print(table(all_tried))
    num_equivalent = sum(map(is_equivalent, all_tried))
    print(f"{len(all_tried)} mutants, {num_equivalent} of them listed as equivalent; seed {args.seed}")
    return int(too_many_equivalent(all_tried))


def _line(tried: Tried) -> dict:
    return tried.mutant._asdict() | tried._asdict() | {"mutant": None}


def _tried(value: dict) -> Tried:
    mutant = Mutant(*(value[name] for name in Mutant._fields))
    return Tried(mutant, *(value[name] for name in Tried._fields[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
