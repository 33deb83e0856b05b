"""The list of deliberate mistakes fits the current package; `make mistakes` tries them."""

import ast

import pytest

from tests.conftest import ROOT
from tests.mistakes import all_mistakes
from tests.mistakes.change import changed, find

CODE = '''"""Module."""
LIMIT = 2


class Queue:
    """A queue."""

    @property
    def size(self):
        return self.n + 1

    def put(self, item):
        """Put it in."""
        if self.n >= 3:
            raise ValueError(f"the queue has {self.n} items: é")
        a, b = item, self.n  # a comment
        self.items.append(item, 7, at=b, flag=True)
        self.items.flush()
        return {"first": a, "last": b}
'''


def test_the_page_states_the_number_of_mistakes():
    mistakes = list(all_mistakes())
    known = sum(bool(mistake.reason) for mistake in mistakes)
    text = (ROOT / "docs" / "tested.md").read_text()
    assert f"The list has {len(mistakes)} mistakes" in text and f"{known} survive" in text


def test_each_mistake_matches_once_changes_the_tree_and_names_an_existing_test():
    texts = {file: (ROOT / "vitkd_ds" / file).read_text() for file in {mistake.file for mistake in all_mistakes()}}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    for mistake in all_mistakes():
        assert len(find(trees[mistake.file], mistake.where, mistake.old)) == 1, mistake
        assert ast.dump(ast.parse(mistake.new)) != ast.dump(ast.parse(mistake.old)), mistake
        file, _, name = mistake.test.partition("::")
        start = f"def {name.partition('[')[0]}(" if name else ""
        assert start in (ROOT / "tests" / file).read_text(), mistake.test


@pytest.mark.parametrize(
    ("where", "old", "new", "line", "changed_line"),
    [
        ("", "LIMIT = 2", "LIMIT = 3", "LIMIT = 2", "LIMIT = 3"),
        ("Queue.size", "self.n + 1", "self.n", "return self.n + 1", "return self.n"),
        ("Queue.put", "self.n >= 3", "False", "if self.n >= 3:", "if False:"),
        ("Queue.put", "self.items.flush()", "", "        self.items.flush()", "        "),
        ("Queue.put", "self.items.flush()", "pass", "self.items.flush()", "pass"),
        ("Queue.put", "flag=True", "flag=False", "flag=True", "flag=False"),
        ("Queue.put", "flag=True", "", "item, 7, at=b, flag=True", "item, 7, at=b, "),
        ("Queue.put", "...(item, 7, **...)", "...(7, **...)", "item, 7, at=b", "7, at=b"),
        (
            "Queue.put",
            "{'first': a, **...}",
            "{'first': b, **...}",
            '{"first": a, "last": b}',
            "{'first': b, 'last': b}",
        ),
        ("Queue.put", "raise ValueError(...)", "return", "raise ValueError(", None),
    ],
)
def test_a_change_replaces_what_matches_and_nothing_else(where, old, new, line, changed_line):
    found = changed(CODE, where, old, new)
    if changed_line is None:
        assert line not in found and "            return\n" in found and "# a comment" in found
    else:
        assert CODE.count(line) == 1
        assert found == CODE.replace(line, changed_line)


@pytest.mark.parametrize(
    ("where", "old", "times"),
    [("Queue.put", "self.n", 3), ("Queue", "self.n + 1", 0), ("Queue.get", "item", 0), ("Queue.put", "self.n > 3", 0)],
)
def test_a_change_must_match_exactly_once_in_its_function(where, old, times):
    with pytest.raises(ValueError, match=f"has {times} matches"):
        changed(CODE, where, old, "0")


def test_a_change_matches_with_any_layout_comments_and_messages():
    other = CODE.replace(
        "self.items.append(item, 7, at=b, flag=True)", "self.items.append(\n  item,  # first\n  7, at=(b), flag=True)"
    )
    other = other.replace("the queue has", "there are already").replace('"""Put it in."""', '"""Add an item."""')
    new = "self.items.append(..., **..., flag=False)"
    found = changed(other, "Queue.put", "self.items.append(..., **..., flag=True)", new)
    assert "self.items.append(item, 7, at=b, flag=False)" in found and "already" in found
    assert "return" in changed(other, "Queue.put", "if ...:\n    raise ...", "if self.n > 3:\n    raise ...")
