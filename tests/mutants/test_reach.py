"""Instrumented code records which functions run, and a mutant's tests are ordered correctly."""

import os
import sys
import types

from tests.mutants.draw import Mutant
from tests.mutants.reach import RECORDER, Reach, candidates, instrumented, mirrored, reach_of

CODE = '''"""Module."""

from __future__ import annotations

import sys


def first(x):
    """Docstring."""
    def inner():
        return x
    return inner()


class A:
    async def second(self):
        return 1

    def third(self):
        return 2
'''


def test_instrumented_functions_record_the_test_once_and_return_the_same_values(tmp_path, monkeypatch):
    recorder = types.ModuleType("vitkd_ds._reached")
    exec(RECORDER, recorder.__dict__)
    monkeypatch.setitem(sys.modules, "vitkd_ds._reached", recorder)
    monkeypatch.setenv("VITKD_DS_REACHED", str(tmp_path / "reached"))
    text, names = instrumented(CODE, 7)
    assert names == ["first", "A.second", "A.third"]
    module = {}
    exec(compile(text, "instrumented", "exec"), module)
    assert module["first"](3) == 3 and module["first"](4) == 4 and module["A"]().third() == 2
    assert module["first"].__doc__ == "Docstring." and module["__doc__"] == "Module."
    test = os.environ["PYTEST_CURRENT_TEST"]
    assert (tmp_path / "reached").read_text().splitlines() == [f"7 {test}", f"9 {test}"]


def test_fixtures_count_for_all_tests_of_their_file_and_failed_tests_for_none(monkeypatch):
    monkeypatch.setattr("tests.mutants.reach.numbered", lambda: [("a.py", "f"), ("a.py", "g")])
    tests = {"t.py::one": (1.0, "passed"), "t.py::two": (2.0, "passed"), "t.py::bad": (1.0, "failed")}
    record = {"file": "t.py", "code": 1, "tests": tests, "reached": [[0, ""], [1, "t.py::two"], [1, "t.py::bad"]]}
    reach = reach_of([record])
    assert reach.seconds == {"t.py::one": 1.0, "t.py::two": 2.0}
    assert reach.functions == {"a.py": {"f": {"t.py::one", "t.py::two"}, "g": {"t.py::two"}}}


def test_the_test_files_that_mirror_a_module_are_found():
    assert mirrored("checkpoint/lock.py") == ["checkpoint/test_lock.py"]
    assert mirrored("cli.py") == ["test_cli.py"]
    assert mirrored("commands/doctor/rows.py") == ["commands/test_doctor.py"]


def test_mirroring_tests_come_first_then_the_shortest_that_reach_the_function():
    mirror = "checkpoint/test_lock.py::test_m"
    seconds = {"x.py::long": 9.0, "x.py::short": 1.0, mirror: 20.0, "x.py::other": 0.1}
    functions = {"checkpoint/lock.py": {"_read": {"x.py::long", "x.py::short"}, "holder_of": {"x.py::other"}}}
    reach = Reach(seconds, functions)
    inside = candidates(Mutant("checkpoint/lock.py", 0, "_read", "bool", "", ""), reach)
    assert [test.name for test in inside] == [mirror, "x.py::short", "x.py::long"]
    outside = candidates(Mutant("checkpoint/lock.py", 0, "", "bool", "", ""), reach)
    assert [test.name for test in outside] == [mirror, "x.py::other", "x.py::short", "x.py::long"]
