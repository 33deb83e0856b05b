"""Draw random mutants of the package and count those that the tests kill: `make mutants N=300 SEED=1`.

Words after the command choose the mutants whose file has one of them. MUTANTS_JOBS is the number of worker processes,
by default 1. First, once per state of the tree, all tests run on an instrumented copy, which takes as long as
`make test-all`. Both parts write to build/mutants/ and continue where an interrupted run stopped. A test kills a mutant
if it fails, crashes or reaches its time limit: first the tests of `make test` run, then the others of `make test-all`.
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
"""Most tests of one fork. They are sorted by time, so one time limit fits all."""
_copies: dict[str, Path] = {}
"""This worker's copies of the tree."""


def start_worker(top: Path, *, must_record: bool) -> None:
    """Copy the tree for this worker, and once more to be instrumented if the tests must be recorded."""
    for name in ("plain", "instrumented") if must_record else ("plain",):
        _copies[name] = top / f"{os.getpid()}_{name}" / "copy"
        copy_tree(_copies[name])
    if must_record:
        instrument(_copies["instrumented"])


def record_file(test_file: str) -> dict:
    """Record what the tests of a file reach."""
    markers = marker_expression(TARGETS[-1])
    return record(test_file, _copies["instrumented"], _copies["plain"], markers)


def names_of(files: Sequence[str]) -> list[str]:
    """The tests of `make test` in these files."""
    return collect(_copies["plain"], files, marker_expression(TARGETS[0]))


def try_mutant(work: tuple[Mutant, dict[str, list[TimedTest]]]) -> Tried:
    """Put a mutant in, run the tests of each target until one fails, and take it out."""
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
    """Tests in runs of one fork each. A test that needs a higher time limit than the first of a run begins another."""
    found = []
    for test in tests:
        if found and len(found[-1]) < BATCH and limit_of(test.seconds) <= 2 * limit_of(found[-1][0].seconds):
            found[-1].append(test)
        else:
            found.append([test])
    return found


def killed_by(tests: Sequence[TimedTest]) -> str:
    """The test that fails, or "" if all pass."""
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
    """A file of JSON lines that an interrupted run continues."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else ""
        path.write_text(text[: text.rfind("\n") + 1])  # without half a line
        self.values = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, value: object) -> None:
        """Append a value."""
        self.values.append(value)
        with self.path.open("a") as file:
            file.write(json.dumps(value) + "\n")


def with_workers(function: Callable, works: Sequence, *, must_record: bool, done: Callable[[object], None]) -> None:
    """Call a function with each of the works in worker processes, and `done` with each result."""
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
    """The records of files of tests, and the tests of `make test` among them."""
    lines = Lines(FOLDER / f"reach_{digest()}.jsonl")
    known = {value["file"] for value in lines.values}
    missing = [file for file in files if file not in known]
    with_workers(record_file, missing, must_record=True, done=lines.add)
    fast: list[str] = []
    with_workers(names_of, [files], must_record=False, done=fast.extend)
    return [value for value in lines.values if value["file"] in files], set(fast)


def test_files() -> list[str]:
    """All files of tests, without those of the mistakes and mutants, which read the package's source."""
    top = ROOT / "tests"
    every = sorted(str(path.relative_to(top)) for path in top.rglob("test_*.py"))
    return [file for file in every if file != "test_mistakes.py" and not file.startswith("mutants/")]


def show_failures(records: Sequence[dict]) -> None:
    """Print which tests do not pass without a mutant. They are left out."""
    for value in records:
        failed = [name for name, (_, result) in value["tests"].items() if result == "failed"]
        if failed or value["code"] not in (PASSED, NOTHING_RAN):
            print(f"{value['file']} ends with exit code {value['code']} without a mutant; left out: {failed}")


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--num", type=int, default=100, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", help="files below tests/ to which the run is limited, by default all")
    parser.add_argument("words", nargs="*", help="the mutants whose file has one of these words")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Draw and try mutants; return 1 if too many are called equivalent."""
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
    print(f"{len(all_tried)} mutants, {num_equivalent} of them called equivalent; seed {args.seed}")
    return int(too_many_equivalent(all_tried))


def _line(tried: Tried) -> dict:
    return tried.mutant._asdict() | tried._asdict() | {"mutant": None}


def _tried(value: dict) -> Tried:
    mutant = Mutant(*(value[name] for name in Mutant._fields))
    return Tried(mutant, *(value[name] for name in Tried._fields[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
