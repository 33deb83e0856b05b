"""Texts of --help, wrapped to the terminal: the list of commands, and each command's help page."""

import shutil
from textwrap import wrap

from vitkd_ds.commands.manual import GROUPS, PAGES, Option

MORE = "vitkd-ds help COMMAND explains a command; vitkd-ds train --help lists every setting of a run."


def columns(widest: int = 80) -> int:
    """Return the terminal's width in characters, or `widest` if there is no terminal."""
    return shutil.get_terminal_size((widest, 24)).columns


def index_text(summaries: dict[str, str]) -> str:
    """Return the list of commands by group, each with its summary."""
    widest = max(map(len, summaries))
    lines = ["usage: vitkd-ds COMMAND [ARGUMENTS] [--OPTION VALUE ...]"]
    for group, names in GROUPS.items():
        lines += ["", group, *(line for name in names for line in _row(name, summaries[name], widest))]
    return "\n".join([*lines, "", *wrapped(MORE)])


def table_text(rows: dict[str, str]) -> str:
    """Return a two-column table of names and texts, wrapped to the terminal."""
    return "\n".join(line for name, text in rows.items() for line in _row(name, text, max(map(len, rows)), indent=0))


def page_text(name: str, summary: str) -> str:
    """Return the help page of a command: its summary, usage line, arguments, options and examples."""
    page = PAGES[name]
    usage = " ".join(["usage: vitkd-ds", name, *page.words, *["[OPTIONS]"] * bool(page.options or page.takes_run)])
    lines = [*wrapped(summary), "", *wrapped(usage, after=8)]
    lines += ["", *wrapped(page.more)] if page.more else []
    entries = page.words | {_typed(key, option): option.about for key, option in page.options.items()}
    if page.takes_run:
        entries["--KEY VALUE"] = "Any setting of a run, such as --optim.lr 1e-3; vitkd-ds train --help lists them."
    lines += [""] * bool(entries)
    for entry, about in entries.items():
        lines += [f"  {entry}", *wrapped(about, indent=6)]
    examples = [line for example in page.examples for line in _continued(example)]
    return "\n".join([*lines, "", "examples:", *examples])


def _typed(key: str, option: Option) -> str:
    return f"--{key} {option.value}".rstrip()


def _row(name: str, text: str, widest: int, *, indent: int = 2) -> list[str]:
    """Return the lines of a table row: `name`, padded to `widest` characters, and `text`.

    Lines after the first are aligned with the text, or start below the name if the terminal is narrow.
    """
    after = indent + widest + 2
    return wrapped(f"{name:{widest}}  {text}", indent=indent, after=after if after < columns() / 2 else indent + 4)


def _continued(command: str) -> list[str]:
    r"""Return the lines of a command, broken with \ at the terminal's width."""
    lines = wrap(command, columns() - 6, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\n", " \\\n    ").join(["  ", ""]).splitlines()


def wrapped(text: str, *, indent: int = 0, after: int | None = None, widest: int = 80) -> list[str]:
    """Wrap a text to the terminal's width, only between words, and return its lines.

    Args:
        text: the text.
        indent: spaces before the first line.
        after: spaces before the other lines; None means `indent`.
        widest: width in characters if there is no terminal.
    """
    spaces = {"initial_indent": " " * indent, "subsequent_indent": " " * (indent if after is None else after)}
    return wrap(text, columns(widest), **spaces, break_long_words=False, break_on_hyphens=False)
