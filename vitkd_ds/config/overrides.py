"""Set fields of a frozen run from text, and rebuild settings from JSON. Pydantic converts and checks the values.

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
    """Value in the run. If the run lacks the group, the field's default (PydanticUndefined if there is none)."""
    is_in_run: bool
    """Whether the run contains the group of this setting."""


def nearest(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return a hint for an unknown name: the nearest valid names, each after `prefix`.

    If no name is near, the hint lists all valid names. If there are more than MANY valid names, the hint says only that
    none of them is similar.
    """
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
    """Return a hint for an unknown option: our equivalent of another program's option, or else the nearest names."""
    valid = set(valid)
    return advice(name, valid, prefix) or nearest(name, valid, prefix)


def settings_of(cls: Any, part: Any, prefix: str = "") -> Iterator[Setting]:
    """Yield every setting of the settings class `cls`, including the settings of nested classes.

    Values are taken from the instance `part`, or are the defaults of the class if `part` is None. For a field with a
    dict of instances, yield the settings of each instance. If the dict is empty, yield the defaults under the
    placeholder name NAME.
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
    """Return a copy of a run, or of one group of its settings, with dotted keys set from text: {"optim.lr": "3e-4"}.

    A group that the run lacks is created from the given values and the defaults of its class.

    Raises:
        ValueError: a key is unknown (the message suggests the nearest), or a text is invalid for its field.
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
    """Convert text to the type `kind` (bool, int or str). An error names the option `key`."""
    try:
        return TypeAdapter(kind).validate_python(_plain(text, kind))
    except ValueError:
        raise ValueError(f"--{key} must be {KINDS[kind]}, got {text!r}.") from None


def from_dict(cls: type[T], stored: Mapping[str, Any]) -> T:
    """Rebuild a settings class from the nested dict in config.json.

    If the dict lacks a field, it was stored before the field existed. The field then gets its default, which keeps the
    earlier behaviour.

    Raises:
        ValueError: a name is unknown, a field without a default is missing, or a value is invalid.
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
