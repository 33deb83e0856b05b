"""Kill rates count the mutants that each make target kills, and equivalent mutants are limited."""

from tests.mutants import report
from tests.mutants.__main__ import BATCH, Lines, batches
from tests.mutants.draw import Mutant
from tests.mutants.reach import TimedTest
from tests.mutants.report import Tried, is_equivalent, rate, table, too_many_equivalent


def tried(target, file="data/a.py", old="x"):
    return Tried(Mutant(file, 0, "f", "bool", old, "y"), target, "", 1.0, 1)


def test_a_mutant_killed_by_make_test_counts_as_killed_by_make_test_all():
    rows = table([tried("test"), tried("test-all"), tried(""), tried("test", "cli.py")]).splitlines()
    assert [row.split()[0] for row in rows] == ["room", "(top)", "data", "all"]
    assert rows[2].split()[2:] == "1 of 3: 33.3 % (6 to 79) 2 of 3: 66.7 % (21 to 94)".split()
    assert "2 of 4: 50.0 %" in rows[3] and "3 of 4: 75.0 %" in rows[3]


def test_the_interval_is_wilsons():
    assert rate(88, 112) == "88 of 112: 78.6 % (70 to 85)"


def test_a_survivor_with_a_reason_is_not_counted_but_a_killed_one_is(monkeypatch):
    monkeypatch.setattr(report, "EQUIVALENT", {"data/a.py": {"f": {"x => y": "it is the same"}}})
    assert is_equivalent(tried("")) and not is_equivalent(tried("test")) and not is_equivalent(tried("", old="z"))
    assert "1 of 1: 100.0 %" in table([tried(""), tried("test")])


def test_at_most_a_tenth_may_be_called_equivalent(monkeypatch):
    monkeypatch.setattr(report, "EQUIVALENT", {"data/a.py": {"f": {"x => y": "it is the same"}}})
    assert not too_many_equivalent([tried(""), *[tried("test")] * 9])
    assert too_many_equivalent([tried(""), *[tried("test")] * 8])


def test_an_interrupted_run_continues_after_its_last_whole_line(tmp_path):
    lines = Lines(tmp_path / "new" / "lines")
    lines.add({"a": 1})
    lines.path.write_text(lines.path.read_text() + '{"a": ')
    again = Lines(lines.path)
    again.add({"a": 2})
    assert again.values == Lines(lines.path).values == [{"a": 1}, {"a": 2}]


def test_tests_of_one_fork_have_similar_time_limits():
    tests = [TimedTest(f"{number}", 0.1) for number in range(BATCH + 1)] + [
        TimedTest("slow", 60.0),
        TimedTest("slower", 70.0),
    ]
    assert [len(batch) for batch in batches(tests)] == [BATCH, 1, 2]
