"""Record which tests reach which functions of the package, once per state of the tree, on an instrumented copy.

Each function and method starts with a call that appends its number and the running test to a file, once per process and
test. Child processes inherit the names of the file and the test, so they record too. Functions reached during the setup
of a test count for all tests of its file, because fixtures are shared.
"""

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.mistakes.change import SCOPE
from tests.mistakes.trial import FAILED, FIRST_LIMIT_S, NOTHING_RAN, PASSED, ROOT, run_tests
from tests.mutants.draw import Mutant

RECORDER = '''"""Record which test reaches which function."""

import os

_seen = set()


def reached(number):
    test = os.environ.get("PYTEST_CURRENT_TEST")
    path = os.environ.get("VITKD_DS_REACHED")
    if test and path and (number, test) not in _seen:
        _seen.add((number, test))
        with open(path, "a") as file:
            file.write(f"{number} {test}\\n")
'''
FILE_LIMIT_S = 3000
"""Time limit of a test file, in seconds."""


class TimedTest(NamedTuple):
    """A test and its time."""

    name: str
    """pytest name relative to tests/."""
    seconds: float


class Reach(NamedTuple):
    """Passing tests, and the functions of the package that they reach."""

    seconds: dict[str, float]
    """Seconds per test."""
    functions: dict[str, dict[str, set[str]]]
    """File of the package to qualified name of a function to tests."""


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield functions and methods with their qualified names, without those inside functions."""
    waiting = [("", tree)]
    while waiting:
        outer, parent = waiting.pop(0)
        for node in parent.body:
            if isinstance(node, SCOPE):
                name = f"{outer}.{node.name}".lstrip(".")
                if isinstance(node, ast.ClassDef):
                    waiting.append((name, node))
                else:
                    yield name, node


def instrumented(text: str, first: int) -> tuple[str, list[str]]:
    """Return a module that records its functions, numbered from `first`, and the functions' names in this order."""
    tree = ast.parse(text)
    names = []
    for name, node in functions(tree):
        call = ast.parse(f"_reached({first + len(names)})").body[0]
        node.body.insert(1 if ast.get_docstring(node) is not None else 0, call)
        names.append(name)
    place = 1 if ast.get_docstring(tree) is not None else 0
    while place < len(tree.body) and getattr(tree.body[place], "module", "") == "__future__":
        place += 1
    if names:
        tree.body.insert(place, ast.parse("from vitkd_ds._reached import reached as _reached").body[0])
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n", names


def instrument(copy: Path) -> None:
    """Instrument the package in a copy of the tree."""
    first = 0
    for path in sorted((copy / "vitkd_ds").rglob("*.py")):
        text, names = instrumented(path.read_text(), first)
        path.write_text(text)
        first += len(names)
    (copy / "vitkd_ds" / "_reached.py").write_text(RECORDER)


def numbered() -> list[tuple[str, str]]:
    """Return file and qualified name of each function, in the order of their numbers."""
    found = []
    for path in sorted((ROOT / "vitkd_ds").rglob("*.py")):
        file = str(path.relative_to(ROOT / "vitkd_ds"))
        found += [(file, name) for name in instrumented(path.read_text(), 0)[1]]
    return found


def digest() -> str:
    """Return a digest of the package and the tests, without this folder and tests/mistakes."""
    digest = hashlib.blake2b(digest_size=8)
    for top in ("vitkd_ds", "tests"):
        for path in sorted((ROOT / top).rglob("*.py")):
            if path.parts[len(ROOT.parts) + 1] not in ("mistakes", "mutants"):
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def record(test_file: str, copy: Path, plain: Path, markers: str) -> dict:
    """Run a test file on the instrumented copy, and tests that fail there again on the plain copy."""
    results, reached = copy.parent / "results", copy.parent / "reached"
    environ = {"VITKD_DS_RESULTS": str(results), "VITKD_DS_REACHED": str(reached)}
    options = ["-p", "tests.mutants.record", "-m", markers]
    found, lines, names = {}, [], [test_file]
    for tree in (copy, plain):
        for path in (results, reached):
            path.write_text("")
        outcome = run_tests(
            names, tree, limit_s=FIRST_LIMIT_S, total_s=FILE_LIMIT_S, options=options, environ=environ, is_changed=False
        )
        for line in results.read_text().splitlines():
            name, seconds, result = json.loads(line)
            found[name] = (seconds, result)
        lines += reached.read_text().splitlines()
        names = [name for name, (_, result) in found.items() if result == "failed"]
        if outcome.code not in (PASSED, FAILED, NOTHING_RAN):
            names = [test_file]  # pytest stopped before the last test
        if not names:
            break
    return {
        "file": test_file,
        "code": outcome.code,
        "tests": found,
        "reached": sorted({_without_phase(line) for line in lines}),
    }


def _without_phase(line: str) -> tuple[int, str]:
    """Return the function's number and the test of a line; the test is "" for a test's setup."""
    number, _, test = line.partition(" ")
    name, _, phase = test.rpartition(" ")
    return int(number), name.removeprefix("tests/") if phase != "(setup)" else ""


def reach_of(records: Sequence[dict]) -> Reach:
    """Combine the records of all test files."""
    names = numbered()
    reach = Reach({}, {file: {} for file, _ in names})
    for record in records:
        passed = {name: seconds for name, (seconds, result) in record["tests"].items() if result == "passed"}
        reach.seconds.update(passed)
        for number, test in record["reached"]:
            file, function = names[number]
            tests = passed if not test else {test} & passed.keys()
            reach.functions[file].setdefault(function, set()).update(tests)
    return reach


def mirrored(file: str) -> list[str]:
    """Return the test files that correspond to a file of the package by their path, the closest first."""
    path = Path(file)
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    candidates = [path.parent / f"test_{stem}.py", path.parent.parent / f"test_{path.parent.name}.py"]
    candidates += [Path(f"test_{stem}.py")]
    return [str(each) for each in dict.fromkeys(candidates) if (ROOT / "tests" / each).is_file()]


def candidates(mutant: Mutant, reach: Reach) -> list[TimedTest]:
    """Return the tests that may notice a mutant: those of the corresponding files, then others that reach it, each
    sorted by time."""
    by_function = reach.functions.get(mutant.file, {})
    words = mutant.where.split(".")
    wheres = [".".join(words[:length]) for length in range(len(words), 0, -1)]
    known = {name for name, _ in functions(ast.parse((ROOT / "vitkd_ds" / mutant.file).read_text()))}
    inside = next((where for where in wheres if where in known), None)
    tests = by_function.get(inside, set()) if inside else set().union(*by_function.values())
    files = mirrored(mutant.file)

    def order(name: str) -> tuple[int, float, str]:
        file = name.partition("::")[0]
        return files.index(file) if file in files else len(files), reach.seconds[name], name

    chosen = {name for name in reach.seconds if name.partition("::")[0] in files} | tests
    return [TimedTest(name, reach.seconds[name]) for name in sorted(chosen, key=order)]
