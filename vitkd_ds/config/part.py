"""Base of the settings classes (frozen pydantic dataclasses), and the text of their errors.

A field's annotation defines its valid values, for example `lr: Annotated[Number, Gt(0)]` or
`placement: Literal["shard", "replica", "offload"]`. Errors and `--help` describe these values in words. The string
below the field is its help text.
"""

import collections.abc
import dataclasses
import difflib
from typing import Annotated, Any, Callable, Literal, Sequence, get_args, get_origin

from annotated_types import Predicate
from pydantic import ConfigDict, ValidationError, WrapValidator
from pydantic.fields import FieldInfo

from vitkd_ds.config.teachers import shortened

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "numbers separated by commas, such as 0.08,1",
    tuple[int, ...]: "whole numbers separated by commas, such as 2,11",
    collections.abc.Mapping: 'a JSON object, such as {"depth": 4}',
}
"""For each field type, the description of its values in errors and `--help`. All other types are described as text."""


@dataclasses.dataclass(frozen=True)
class Rule(Predicate):
    """Condition on a value. `must` describes valid values, such as "two numbers", for the message "KEY must be ..."."""

    must: str


def _number(value: Any, convert: Callable[[Any], float]) -> float:
    """Validate a number. An int stays an int, so that 20 in a stored run does not become 20.0."""
    number = convert(value)
    return value if type(value) is int else number


Number = Annotated[float, WrapValidator(_number)]
"""Field type for a finite number."""


class Checked(type):
    """Metaclass of classes that raise ValueError with `explain`'s message instead of pydantic's ValidationError."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Create an instance. Values are not converted, so they must already have the declared types."""
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ValueError(explain(error, cls)) from None


class Part(metaclass=Checked):
    """Base class of a group of settings. `place` is the key of the group in a run, such as optim."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    _place = ""

    def __init_subclass__(cls, *, place: str | None = None) -> None:
        if place is not None:
            cls._place = place


def part_in(field: FieldInfo) -> Any:
    """Return the settings class X if the type of a field is `X`, `X | None` or `dict[str, X]`; otherwise None."""
    options = (field.annotation, *get_args(field.annotation))
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def holds_many(field: FieldInfo) -> bool:
    """Return whether a field is a dict or another mapping."""
    return get_origin(field.annotation) in (dict, collections.abc.Mapping)


def locate(cls: Any, path: Sequence[str]) -> tuple[Any, FieldInfo | None]:
    """Find a setting by its path of names; return the settings class that declares it, and its field.

    If the path leads to no field, or to a whole group of settings, return the last settings class on the path and None.
    """
    names = [*path]
    while names:
        field = cls.__pydantic_fields__.get(names.pop(0))
        part = part_in(field) if field else None
        if part is None:
            return cls, None if names else field
        cls = part
        if holds_many(field):
            names = names[1:]
    return cls, None


def what(field: FieldInfo) -> str:
    """Describe the valid values of a setting, such as "a number above 0"."""
    if rules := [item.must for item in field.metadata if isinstance(item, Rule)]:
        return rules[0]
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    kind = KINDS.get(field.annotation) or KINDS.get(get_origin(field.annotation), "text")
    found = [(name, getattr(item, name, None)) for item in field.metadata for name in ("gt", "ge", "lt", "le")]
    limits = {name: limit for name, limit in found if limit is not None}
    if len(limits) < 2:
        words = {"gt": " above {}", "ge": ", {} or more", "lt": " below {}", "le": ", {} or less"}
        return kind + "".join(words[name].format(limit) for name, limit in limits.items())
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}"
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})"
    return f"{kind} in {low}, {high}"


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError("KEY must MUST, got FOUND. ...") unless `holds` is true."""
    if not holds:
        raise ValueError(f"{key} must {must}, got {repr(found)[:80]}. Change it in the recipe or with --{key}.")


def explain(error: ValidationError, cls: Any) -> str:
    """Return an error message for the first problem in pydantic's error: the problem, the value and the remedy."""
    first = error.errors(include_url=False)[0]
    names = [name for name in first["loc"] if isinstance(name, str)]  # drop indices in tuples
    key = shortened(".".join(filter(None, (cls._place, *names))))
    owner, field = locate(cls, names)
    if first["type"] in ("value_error", "assertion_error"):  # raised by one of our checks, with its own message
        return f"{key}: {first['ctx']['error']}" if field else str(first["ctx"]["error"])
    if first["type"] == "missing" and first["loc"][-1] == names[-1]:
        return f"{key} is missing. Set it in the recipe or with --{key}."
    if first["type"] == "unexpected_keyword_argument":
        (close,) = difflib.get_close_matches(names[-1], owner.__pydantic_fields__, n=1, cutoff=0)
        return f"{key} is not a setting of this version. Remove it, or use {close}, the most similar name."
    must = what(field) if field else "a JSON object"
    return f"{key or 'a run'} must be {must}, got {repr(first['input'])[:80]}. Change it in the recipe or with --{key}."
