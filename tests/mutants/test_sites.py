"""Each operator makes the change that its name says, and prose has no mutation sites."""

import ast

import pytest

from tests.mutants.draw import mutated
from tests.mutants.sites import sites


def changes(text, operator):
    """The text after each change by an operator."""
    found = [site.operator for site in sites(ast.parse(text))]
    return [ast.unparse(ast.parse(mutated(text, number))) for number, name in enumerate(found) if name == operator]


@pytest.mark.parametrize(
    ("operator", "old", "news"),
    [
        ("comparison", "x = a < b", ["x = a <= b", "x = a >= b"]),
        ("comparison", "x = a == b != c", ["x = a != b != c", "x = a == b == c"]),
        ("arithmetic", "x = a * b", ["x = a / b"]),
        ("arithmetic", "x += a", ["x -= a"]),
        ("and/or", "x = a and b and c", ["x = a or b or c"]),
        ("drop not", "x = not a", ["x = a"]),
        ("drop minus", "x = -a", ["x = a"]),
        ("negate test", "while a:\n    f()", ["while not a:\n    f()"]),
        ("negate test", "x = a if b else c", ["x = a if not b else c"]),
        ("number + 1", "x = 0", ["x = 1"]),
        ("number - 1", "x = 0", ["x = -1"]),
        ("bool", "x = True", ["x = False"]),
        ("string", "x = d['key']", ["x = d['key_']"]),
        ("drop keyword", "f(a, b=1, c=2)", ["f(a, c=2)", "f(a, b=1)"]),
        ("swap arguments", "f(a, b, c)", ["f(b, a, c)", "f(a, c, b)"]),
        ("constant argument", "f(a, 2, b=c)", ["f(a, 2, b=0)", "f(0, 2, b=c)"]),
        ("drop call", "f()\ng = 1", ["g = 1"]),
        ("drop decorator", "@torch.no_grad()\ndef f():\n    g()", ["def f():\n    g()"]),
        ("drop with", "with a, b:\n    f()\n    g()", ["f()\ng()"]),
        ("return None", "def f():\n    return x", ["def f():\n    return None"]),
        ("drop return", "def f():\n    if a:\n        return\n    g()", ["def f():\n    if a:\n        pass\n    g()"]),
        ("drop break", "for x in y:\n    continue", ["for x in y:\n    pass"]),
        ("drop body", "if a:\n    f()\nelse:\n    g()", ["if a:\n    pass\nelse:\n    g()"]),
        ("drop else", "if a:\n    f()\nelse:\n    g()", ["if a:\n    f()"]),
        ("range", "range(a)", ["range(1, a)", "range(a - 1)"]),
        ("range", "range(a, b, c)", ["range(a + 1, b, c)", "range(a, b - 1, c)"]),
        ("slice", "x = y[:a]", ["x = y[1:a]", "x = y[:a - 1]"]),
        ("max/min", "x = max(a, b)", ["x = min(a, b)"]),
        ("max/min", "x = a.argmin(1)", ["x = a.argmax(1)"]),
    ],
)
def test_each_operator_makes_its_changes(operator, old, news):
    assert changes(old, operator) == news


@pytest.mark.parametrize(
    "text",
    [
        '"""Docstring."""',
        "import a",
        "from a import b",
        "__all__ = ['a', 'b']",
        "x: dict[str, Literal['a', 1]]",
        "x = 'some prose'",
        "x = f'{a + 1} of {len(b)}'",
        "logger.warning('text', a + 1)",
        "def f(a: tuple[int, 3]) -> Literal['b', True]:\n    '''Docstring.'''",
        "raise ValueError('text', a + 1)",
        "@property\ndef f(self):\n    pass",
        "with open(a) as b:\n    pass".replace("open(a)", "a"),
    ],
)
def test_prose_annotations_and_imports_have_no_mutation_sites(text):
    assert [site.operator for site in sites(ast.parse(text))] == []


def test_printed_text_stays_but_the_whole_call_may_be_removed():
    assert [site.operator for site in sites(ast.parse("print('key', a + 1)"))] == ["drop call"]


def test_a_site_is_named_after_its_function():
    text = "class A:\n    @cached(1)\n    def f(self):\n        def g():\n            return 1\nX = 2"
    names = {(site.where, site.operator) for site in sites(ast.parse(text))}
    assert {("A.f", "drop decorator"), ("A.f.g", "return None"), ("", "number + 1")} <= names
