"""HTML made of elements: all text is escaped, so that no class name, path or message of a run becomes markup."""

import json
from html import escape
from typing import Any, Iterable, Sequence

VOID = ("br", "img", "input")
"""Elements without content and end."""


class Html(str):
    """Markup, which is not escaped again."""


def element(tag: str, /, *children: Any, **attributes: Any) -> Html:
    """Make an element of text, markup and numbers.

    Args:
        attributes: `class_` is class, and `data_run` data-run; True is an attribute without a value, and None, False or
            "" is none.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    words = [
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in given.items()
        if value is not None and value is not False and value != ""
    ]
    end = "" if tag in VOID else f"{joined(children)}</{tag}>"
    return Html(f"<{tag}{''.join(words)}>{end}")


def joined(children: Iterable[Any]) -> Html:
    """Markup as it is, and everything else as escaped text."""
    return Html("".join(child if isinstance(child, Html) else escape(str(child)) for child in children))


def section(name: str, title: str, *children: Any) -> Html:
    """A section of the page, with a heading that a link can name."""
    return element("section", element("h2", title), *children, id=name)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], **attributes: Any) -> Html:
    """A table whose first column is of names and the others of numbers; it scrolls by itself where it is too wide. A
    cell may be an element `td` of its own."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = joined(element("tr", *map(_cell, row)) for row in rows)
    whole = element("table", element("thead", head), element("tbody", body), **attributes)
    return element("div", whole, class_="scroll")


def _cell(cell: Any) -> Html:
    return cell if isinstance(cell, Html) and cell.startswith("<td") else element("td", cell)


def data(name: str, content: Any) -> Html:
    """JSON for the page's script. No text in it can end the element, as "<" is written as an escape of JSON."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')
