"""Set fields of a frozen run from text, converted by their declared types, and rebuild a run from JSON.

What is unknown is refused with the nearest valid name, before anything else happens.
"""

import collections.abc
import dataclasses
import difflib
import json
import math
from pathlib import Path
from typing import Any, Iterable, Literal, Mapping, TypeVar, get_args, get_origin, get_type_hints

from vitkd_ds.config.reading import Unreadable, load_json
from vitkd_ds.config.run import Run
from vitkd_ds.config.run_folder import CONFIG

T = TypeVar("T")

BOOLS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)

KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", tuple: "numbers with commas, such as 0.08,1",
    collections.abc.Mapping: 'a JSON object, such as {"depth": 4}',
}  # fmt: skip
"""Words for the values of a type; any other type takes text as it is."""

MANY = 20
"""Most names that a message lists."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that helps with an unknown name: the nearest valid ones, else all of them unless they are many."""
    valid = sorted(set(valid))
    close = [key for key in valid if key.endswith(f".{name}")]  # "lr" means "optim.lr"
    close = close or difflib.get_close_matches(name, valid, n=3, cutoff=0.6)
    if not close and len(valid) > MANY:
        close = difflib.get_close_matches(name, valid, n=3, cutoff=0)
    return f"did you mean {' or '.join(close)}?" if close else f"valid names are {', '.join(valid)}"


def apply_overrides(run: T, overrides: Mapping[str, str]) -> T:
    """Copy a run, or a part of one, with dotted keys set from text, such as {"optim.lr": "3e-4"}; raises ValueError for
    an unknown key (the nearest is named), and for text that is no value of the field's type or that it refuses."""
    keys = field_types(run)
    for key, text in overrides.items():
        if key not in keys:
            raise ValueError(f"--{key} is no option: {nearest(key, keys)}")
        run = _replace(run, key.split("."), convert(text, keys[key], key))
    return run


def field_types(run: Any, prefix: str = "") -> dict[str, Any]:
    """Every settable key of a dataclass tree with its declared type; a part that is None has no keys."""
    types: dict[str, Any] = {}
    for name, declared in get_type_hints(type(run)).items():
        value = getattr(run, name)
        if dataclasses.is_dataclass(value):
            types |= field_types(value, f"{prefix}{name}.")
        elif not dataclass_in(declared):
            types[prefix + name] = declared
    return types


def convert(text: str, declared: Any, key: str) -> Any:
    """Make a value of the declared type from text; `key` is for the message of the ValueError if it is none."""
    kind = get_origin(declared) or declared
    if kind is Literal and {"off", "default"} <= set(get_args(declared)) and text.lower() in BOOLS:
        return "default" if BOOLS[text.lower()] else "off"  # a choice that was a switch in an earlier version
    try:
        if kind is bool:
            return BOOLS[text.lower()]
        if kind in (int, float):
            if "_" in text or not math.isfinite(float(text)):
                raise ValueError
            return kind(text)
        if kind is tuple:
            return _to_tuple(text, get_args(declared))
        return {**json.loads(text)} if kind in KINDS else text
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"--{key} must be {KINDS[kind]}, found {text!r}") from None


def read_run(path: Path) -> Run:
    """The run in a config.json, in a folder that holds one, or in what `train.py --print_config` printed; raises
    ValueError, which names the file, if there is none or it holds no run of this version."""
    file = path / CONFIG if path.is_dir() else path
    try:
        stored = load_json(file)
        return from_dict(Run, stored["run"] if isinstance(stored, dict) and "run" in stored else stored)
    except Unreadable:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} must hold a run as config.json does: {error}") from None


def from_dict(cls: type[T], stored: Mapping[str, Any], prefix: str = "") -> T:
    """Rebuild a dataclass tree from the nested dict that config.json holds. A field that is absent takes its default,
    as it is newer than the file, and a field's default is what was done before it existed. `prefix` is for the message
    of the ValueError if a key is unknown or missing, or a value is none of its field's."""
    hints = get_type_hints(cls)
    if not isinstance(stored, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or 'a run'} must be a JSON object, found {stored!r}")
    given = [field.name for field in dataclasses.fields(cls) if default_of(field) is dataclasses.MISSING]
    unknown, missing = set(stored) - set(hints), set(given) - set(stored)
    if unknown or missing:
        raise ValueError(
            f"{cls.__name__} must have its own fields alone, and those without a default, found unknown "
            f"{sorted(unknown)} and missing {sorted(missing)}: the file was written by another version"
        )
    values = dict(stored)
    for name, declared in ((name, declared) for name, declared in hints.items() if name in stored):
        value, part = stored[name], dataclass_in(declared)
        if part and (value is not None or part is declared):
            values[name] = from_dict(part, value, f"{prefix}{name}.")
        elif not part:
            if declared in (bool, str) and type(value) is not declared:
                raise ValueError(f"{prefix}{name} must be {KINDS.get(declared, 'a text')}, found {value!r}")
            converted = convert(value if isinstance(value, str) else json.dumps(value), declared, prefix + name)
            values[name] = value if value == converted else converted  # 20 stays 20 where a float is declared
    return cls(**values)


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field, MISSING if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def dataclass_in(declared: Any) -> Any:
    """The dataclass of `X` or `X | None`, else None."""
    return next((option for option in (declared, *get_args(declared)) if dataclasses.is_dataclass(option)), None)


def _replace(node: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    return dataclasses.replace(node, **{head: _replace(getattr(node, head), rest, value) if rest else value})


def _to_tuple(text: str, element_types: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
    if element_types[-1] is Ellipsis:
        element_types = (element_types[0],) * len(parts)
    parts = [part.strip(" '\"") if kind is str else part for kind, part in zip(element_types, parts, strict=True)]
    return tuple(kind(part) for kind, part in zip(element_types, parts))
