"""Set fields of a frozen run from text, and rebuild settings from JSON. Pydantic converts and checks both.

An unknown name is rejected before anything else happens, with the nearest valid name in the message.
"""

import difflib
import json
from dataclasses import asdict
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, TypeVar, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from vitkd_ds.config.part import KINDS, explain, holds_many, locate, part_in, require, what
from vitkd_ds.config.synonyms import advice
from vitkd_ds.config.teachers import ANY, path_of, shortened

T = TypeVar("T")

MANY = 20
"""Maximum number of names listed in a message."""
NEARLY_AS_CLOSE = 0.1
"""Maximum difference in similarity (0 to 1) between a suggested name and the nearest one."""


class Setting(NamedTuple):
    """One setting of a run, with its dotted key."""

    key: str
    owner: Any
    """Class that declares the field."""
    field: FieldInfo
    value: Any
    """Value in the run, else the default of its class, else PydanticUndefined."""
    is_in_run: bool
    """Whether the run contains the group of this setting."""


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return a hint for an unknown name: the nearest valid names after `prefix`, or all of them if they are few."""
    valid = sorted(set(valid))
    close = [key for key in valid if key.endswith(f".{name}")]  # "lr" suggests "optim.lr"
    if not close:
        close = difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
        likeness = [difflib.SequenceMatcher(None, key, name).ratio() for key in close]
        close = [key for key, ratio in zip(close, likeness) if ratio > max(likeness) - NEARLY_AS_CLOSE]
    if close:
        return f"did you mean {' or '.join(prefix + key for key in close)}?"
    if len(valid) > MANY:
        return f"none of the {len(valid)} valid names is similar"
    return f"valid names are {', '.join(prefix + key for key in valid)}"


def nearest_option(name: str, valid: Iterable[str], prefix: str = "--") -> str:
    """Return a hint for an unknown option: its equivalent if another program has it, else the nearest names."""
    valid = set(valid)
    return advice(name, valid, prefix) or nearest(name, valid, prefix)


def settings_of(cls: Any, part: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of a settings class, nested ones included; if `part` is None, with the class's defaults.

    A field that maps names to parts yields the settings of each name, or once with the placeholder NAME if it is empty.
    """
    for name, field in cls.__pydantic_fields__.items():
        value = field.get_default(call_default_factory=True) if part is None else getattr(part, name)
        inner = part_in(field)
        if inner is None:
            yield Setting(shortened(prefix + name), cls, field, value, part is not None)
            continue
        value = None if value is PydanticUndefined else value
        for below, one in (value or {ANY: None}).items() if holds_many(field) else [("", value)]:
            yield from settings_of(inner, one, ".".join(filter(None, (f"{prefix}{name}", below))) + ".")


def apply_overrides(run: T, overrides: Mapping[str, str]) -> T:
    """Copy a run, or a part of one, with dotted keys set from text, such as {"optim.lr": "3e-4"}.

    A part that the run lacks is created from the given values and the defaults of its class.

    Raises:
        ValueError: unknown key (the message suggests the nearest), or text that is not valid for the field.
    """
    tree = asdict(run)
    for key, text in overrides.items():
        path = path_of(key)
        field = locate(type(run), path)[1]
        if field is None:
            valid = [setting.key for setting in settings_of(type(run), run)]
            raise ValueError(f"--{key} is not an option: {nearest_option(shortened(key), valid)}")
        try:
            value = _plain(text, field.annotation)
        except (ValueError, RecursionError):
            value = require(False, key, text, f"be {what(field)}")
        part = tree
        for name in path[:-1]:
            part[name] = part.get(name) or {}
            part = part[name]
        part[path[-1]] = value
    return from_dict(type(run), tree)


def convert(text: str, kind: Any, key: str) -> Any:
    """Convert text to a bool, int or str; `key` is the option named in errors."""
    try:
        return TypeAdapter(kind).validate_python(_plain(text, kind))
    except ValueError:
        raise ValueError(f"--{key} must be {KINDS[kind]}, got {text!r}.") from None


def from_dict(cls: type[T], stored: Mapping[str, Any]) -> T:
    """Rebuild a settings class from the nested dict in config.json.

    An absent field is newer than the file and takes its default, which keeps the behaviour from before the field
    existed.

    Raises:
        ValueError: unknown or missing name, or invalid value.
    """
    try:
        return TypeAdapter(cls).validate_python(stored, strict=False)
    except ValidationError as error:
        raise ValueError(explain(error, cls)) from None


def _plain(text: str, declared_type: Any) -> Any:
    """Parse text into a plain value for pydantic. Raises ValueError if it cannot be parsed."""
    kind = get_origin(declared_type) or declared_type
    if kind is tuple:
        return [part.strip(" '\"") for part in text.strip("()[] ").split(",") if part.strip()]
    if kind in KINDS and kind not in (bool, int, float):
        return json.loads(text)
    if kind in (int, float) and "_" in text:
        raise ValueError("underscores in numbers are not allowed")
    return text
