"""The list of deliberate mistakes fits the package as it is; `make mistakes` tries them."""

from tests.conftest import ROOT
from tests.mistakes import all_mistakes


def test_the_page_has_the_number_of_them():
    mistakes = list(all_mistakes())
    known = sum(bool(mistake.reason) for mistake in mistakes)
    text = (ROOT / "docs" / "tested.md").read_text()
    assert f"Of {len(mistakes)} mistakes {len(mistakes) - known} were noticed" in text and f"{known} survive" in text


def test_each_old_text_stands_once_in_its_file_and_each_test_is_there():
    for mistake in all_mistakes():
        text = (ROOT / "vitkd_ds" / mistake.file).read_text()
        assert text.count(mistake.old) == 1 and mistake.new != mistake.old, f"{mistake.file}: {mistake.old}"
        for word in mistake.test.split():
            file, _, name = word.partition("::")
            assert name.partition("[")[0] in (ROOT / "tests" / file).read_text(), word
