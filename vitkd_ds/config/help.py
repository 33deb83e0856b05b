"""Text of `train.py --help`: every setting of a run with its type, default and docstring."""

import inspect
import json
import re
import shlex
from itertools import accumulate, groupby
from textwrap import wrap
from typing import Any, Mapping

from pydantic_core import PydanticUndefined

from vitkd_ds.config.overrides import Setting, nearest_option, settings_of
from vitkd_ds.config.part import what
from vitkd_ds.config.run import Run


def field_help(run: Run, topic: str = "", *, width: int) -> str:
    """Return the help text of a run's settings in `width` columns. Each setting is shown as the option to type.

    Args:
        run: the values of this run are shown as defaults. If the run lacks a group, the defaults of the group's class
            are shown.
        topic: a group (optim, losses, losses.ce), one field (optim.lr), or a word that fields' names contain (lr) to
            show; "" shows everything.

    Raises:
        ValueError: the topic is unknown; the message suggests the nearest one.
    """
    settings = sorted(settings_of(type(run), run), key=lambda setting: "." in setting.key)  # top level first
    chosen = [setting for setting in settings if not topic or f"{setting.key}.".startswith(f"{topic}.")]
    whole_word = re.compile(rf"(^|[._]){re.escape(topic)}($|[._])")
    chosen = chosen or [setting for setting in settings if whole_word.search(setting.key)]
    if not chosen:
        names = {name for setting in settings for name in accumulate(setting.key.split("."), "{}.{}".format)}
        raise ValueError(f"--help {topic}: no such group or field; {nearest_option(topic, names, prefix='')}")
    lines = []
    whole_words = {"width": width, "break_long_words": False, "break_on_hyphens": False}
    for heading, group in groupby(chosen, key=_heading):
        lines += ["", *wrap(heading, **whole_words)]
        for setting in group:
            option = f"--{setting.key}{_typed(setting.value)}  ({what(setting.field)})"
            lines += wrap(option, **whole_words, initial_indent="  ", subsequent_indent=" " * 8)
            lines += wrap(docstring(setting), **whole_words, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def docstring(setting: Setting) -> str:
    """Return a field's docstring: the string below the field in its class, or else in a base class."""
    name = setting.key.rpartition(".")[2]
    fields = [vars(base).get("__pydantic_fields__", {}).get(name) for base in setting.owner.__mro__]
    return next((" ".join(field.description.split()) for field in fields if field and field.description), "")


def _heading(setting: Setting) -> str:
    """Return the heading of a setting's group."""
    group = setting.key.rpartition(".")[0] or "run"
    absent = "" if setting.is_in_run else " The recipe has none, so these are the defaults of a recipe that has one."
    return f"{group}: {inspect.getdoc(setting.owner)}{absent}"


def _typed(value: Any) -> str:
    """Return "=VALUE" quoted for a shell, or "" for a field without a default."""
    if value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        return f"={','.join(map(str, value))}"
    return f"={shlex.quote(json.dumps(value) if isinstance(value, (bool, Mapping)) else str(value))}"
