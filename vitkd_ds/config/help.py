"""The text of `train.py --help`: every field of a run with its kind, its default and the string below it in the source.
Only people read it: no run depends on a word of it."""

import ast
import dataclasses
import inspect
import json
import shlex
from itertools import accumulate, groupby
from textwrap import wrap
from typing import Any, Iterator, Mapping, get_origin, get_type_hints

from vitkd_ds.config.overrides import KINDS, dataclass_in, default_of, nearest
from vitkd_ds.config.rules import rules_of
from vitkd_ds.config.run import Run


def field_help(run: Run, topic: str = "", *, width: int) -> str:
    """Describe the fields of a run in `width` columns: a heading for each group, each field as the option to type.

    Args:
        run: what the defaults are taken from; a part that is None is listed with the defaults of its class.
        topic: a group (optim, losses, losses.ce) or one field (optim.lr); "" is everything. No other may be asked for:
            ValueError, which names the nearest.
    """
    fields = sorted(_fields(type(run), run, ""), key=lambda field: "." in field[1])  # the top level comes first
    chosen = [field for field in fields if not topic or f"{field[1]}.".startswith(f"{topic}.")]
    if not chosen:
        names = {name for _, key, _, _ in fields for name in accumulate(key.split("."), "{}.{}".format)}
        raise ValueError(f"--help {topic} is no group or field of a run: {nearest(topic, names)}")
    lines = []
    for heading, group in groupby(chosen, key=lambda field: field[0]):
        lines += ["", *wrap(heading, width)]
        for _, _, option, text in group:
            indents = {"initial_indent": "  ", "subsequent_indent": " " * 8}
            lines += wrap(option, width, **indents, break_long_words=False, break_on_hyphens=False)
            lines += wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def docstrings(cls: type) -> dict[str, str]:
    """The string below each field of a dataclass or of its bases, on one line; fields without one are left out."""
    found = {}
    for base in cls.__mro__[-2::-1]:
        try:
            source = inspect.getsource(base)
        except OSError:  # LossesConfig is made from a dict; its fields are parts, which have texts of their own
            continue
        body = ast.parse(source).body[0].body
        for field, below in zip(body, body[1:]):
            match field, below:
                case ast.AnnAssign(ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    found[name] = " ".join(text.split())
    return found


def _fields(cls: type, part: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Heading of its group, key, option and docstring of each field."""
    texts, types, rules = docstrings(cls), get_type_hints(cls), rules_of(cls)
    heading = f"{prefix.rstrip('.') or 'run'}: {inspect.getdoc(cls)}"
    if part is None:
        heading += " The recipe has none; these are the defaults of a recipe that has one."
    for field in dataclasses.fields(cls):
        key, inner = prefix + field.name, dataclass_in(types[field.name])
        value = default_of(field) if part is None else getattr(part, field.name)
        if inner:
            yield from _fields(inner, value, f"{key}.")
        else:
            kind = KINDS.get(get_origin(types[field.name]) or types[field.name], "text")
            must = f"; must {rules[field.name].must}" if field.name in rules else ""
            yield heading, key, f"--{key}{_typed(value)}  ({kind}{must})", texts.get(field.name, "")


def _typed(value: Any) -> str:
    """A value as a shell takes it behind an option, nothing for a field without a default."""
    if isinstance(value, tuple):
        return f"={','.join(map(str, value))}"
    text = json.dumps(value) if isinstance(value, (bool, Mapping)) else str(value)
    return "" if value is dataclasses.MISSING else f"={shlex.quote(text)}"
