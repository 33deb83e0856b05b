"""Random draws of mutants are reproducible, proportional and valid, and leave the rest of a file unchanged."""

import ast
from collections import Counter

from tests.conftest import ROOT
from tests.mutants.draw import TOP, allotted, code_of, described, diff_of, draw, mutated
from tests.mutants.sites import sites

SMALL = {
    "a/first.py": "def f(x):\n    return x + 1  # a comment\n",
    "a/second.py": "def g(x):\n    if x > 2:\n        x.close()\n    return [x, h(x, x)]\n",
    "top.py": "LIMIT = 5\n",
}


def test_the_seed_determines_the_mutants():
    assert draw(SMALL, 6, seed=1) == draw(SMALL, 6, seed=1)
    assert draw(SMALL, 6, seed=1) != draw(SMALL, 6, seed=2)


def test_each_mutant_is_drawn_at_most_once_and_changes_the_code():
    drawn = draw(SMALL, 1000, seed=1)
    trees = {file: ast.unparse(ast.parse(text)) for file, text in SMALL.items()}
    found = [(mutant.file, ast.unparse(ast.parse(mutated(SMALL[mutant.file], mutant.number)))) for mutant in drawn]
    possible = {
        (file, ast.unparse(ast.parse(mutated(text, number))))
        for file, text in SMALL.items()
        for number, _ in enumerate(sites(ast.parse(text)))
    }
    assert sorted(found) == sorted(possible - {*trees.items()})


def test_rooms_get_mutants_in_proportion_to_their_sites():
    assert allotted({"a": 70, "b": 25, "c": 5}, 10) == {"a": 7, "b": 3, "c": 0}
    assert sum(allotted({"a": 1, "b": 1, "c": 1}, 10).values()) == 10
    sizes = Counter()
    for file, text in SMALL.items():
        sizes["a" if "/" in file else TOP] += len([*sites(ast.parse(text))])
    assert Counter(mutant.room for mutant in draw(SMALL, 5, seed=3)) == Counter(allotted(sizes, 5))


def test_a_mutant_of_the_package_compiles_differs_and_changes_few_lines():
    texts = code_of(ROOT / "vitkd_ds")
    texts = {file: texts[file] for file in ("data/order.py", "checkpoint/lock.py", "losses/vitkd.py", "cli.py")}
    drawn = draw(texts, 40, seed=0)
    assert len(drawn) == 40 and len({mutant.operator for mutant in drawn}) > 8
    for mutant in drawn:
        text = texts[mutant.file]
        changed = mutated(text, mutant.number)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)) and mutant.old != mutant.new
        assert len({*text.splitlines()} - {*changed.splitlines()}) <= 25, mutant


def test_a_mutant_is_described_by_the_code_around_its_change():
    text = SMALL["a/first.py"]
    [number] = [index for index, site in enumerate(sites(ast.parse(text))) if site.operator == "number + 1"]
    mutant = described(text, "a/first.py", number)
    assert (mutant.where, mutant.old, mutant.new) == ("f", "return x + 1", "return x + 2")
    assert "-    return x + 1  # a comment\n+    return x + 2  # a comment" in diff_of(mutant, text)
