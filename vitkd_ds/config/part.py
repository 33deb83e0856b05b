"""Base of the settings classes: frozen pydantic dataclasses whose errors and --help are worded here.

A field's annotation says what it may hold, once for the check and for the text: `lr: Annotated[Number, Gt(0)]`, or
`placement: Literal["shard", "replica", "offload"]`. The string below the field is its help.
"""

import collections.abc
import dataclasses
import difflib
from typing import Annotated, Any, Callable, Literal, Sequence, get_args, get_origin

from pydantic import ConfigDict, ValidationError, WrapValidator
from pydantic.fields import FieldInfo

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "numbers with commas, such as 0.08,1",
    collections.abc.Mapping: 'a JSON object, such as {"depth": 4}',
}
"""Words for the values of a type; any other type takes text as it is."""


class Says(str):
    """In an annotation: the words for what its field must be, where type and limits do not say it."""


def _number(value: Any, convert: Callable[[Any], float]) -> float:
    """Check a number; a whole one stays one, so that stored settings do not change from 20 to 20.0."""
    number = convert(value)
    return value if type(value) is int else number


Number = Annotated[float, WrapValidator(_number)]
"""Type of a field for finite numbers."""


class Checked(type):
    """Metaclass that turns pydantic's error into a ValueError in our words."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance from values of exactly the declared types."""
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise ValueError(explain(error, cls)) from None


class Part(metaclass=Checked):
    """A part of a run, for classes with pydantic's `dataclass(frozen=True)`; `place` is its key there, such as optim."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    _place = ""

    def __init_subclass__(cls, *, place: str | None = None) -> None:
        if place is not None:
            cls._place = place


def part_in(field: FieldInfo) -> Any:
    """Return the settings class in a field of type `X`, `X | None` or `dict[str, X]`, else None."""
    options = (field.annotation, *get_args(field.annotation))
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def holds_many(field: FieldInfo) -> bool:
    """Return whether a field is a mapping, so that names stand below it."""
    return get_origin(field.annotation) in (dict, collections.abc.Mapping)


def declared(cls: Any, path: Sequence[str]) -> FieldInfo | None:
    """Return the declaration of the setting at a path of names, None if a part or nothing is there."""
    field = cls.__pydantic_fields__.get(path[0])
    part = part_in(field) if field else None
    rest = path[2:] if part and holds_many(field) else path[1:]
    if part:
        return declared(part, rest) if rest else None
    return None if rest else field


def what(field: FieldInfo) -> str:
    """Say in words what a setting must be."""
    limits = {}
    for item in field.metadata:
        if isinstance(item, Says):
            return item
        limits |= {name: getattr(item, name) for name in ("gt", "ge", "lt", "le") if getattr(item, name, None) is not None}
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    kind = KINDS.get(get_origin(field.annotation) or field.annotation, "text")
    if limits.keys() == {"gt"}:
        return f"{kind} above {limits['gt']}"
    if limits.keys() == {"ge"}:
        return f"{kind}, {limits['ge']} or more"
    if not limits:
        return kind
    (left, low), (right, high) = limits.items()
    return f"{kind} in {'[' if left == 'ge' else '('}{low}, {high}{']' if right == 'le' else ')'}"


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError unless `holds`; the message names the key, what must hold and what was found."""
    if not holds:
        raise ValueError(f"{key} must {must}, got {repr(found)[:80]}. Change it in the recipe or with --{key}.")


def explain(error: ValidationError, cls: Any) -> str:
    """Say the first problem that pydantic found in a settings class, with the evidence and the remedy."""
    first = error.errors(include_url=False)[0]
    names = [name for name in first["loc"] if isinstance(name, str)]  # without the index in a tuple
    key = ".".join(filter(None, (cls._place, *names)))
    if first["type"] == "value_error":  # of a check with a message of its own
        return str(first["ctx"]["error"])
    if first["type"] == "missing" and first["loc"][-1] == names[-1]:
        return f"{key} is missing. Set it in the recipe or with --{key}."
    if first["type"] == "unexpected_keyword_argument":
        (close,) = difflib.get_close_matches(names[-1], _names_at(cls, names[:-1]), n=1, cutoff=0)
        return f"{key} is no setting of this version. Remove it, or use the nearest, {close}."
    field = declared(cls, names) if names else None
    must = what(field) if field else "a JSON object"
    return f"{key or 'a run'} must be {must}, got {repr(first['input'])[:80]}. Change it in the recipe or with --{key}."


def _names_at(cls: Any, path: Sequence[str]) -> list[str]:
    """Return the names of the fields of the part at a path."""
    if not path:
        return [*cls.__pydantic_fields__]
    field = cls.__pydantic_fields__[path[0]]
    return _names_at(part_in(field), path[2:] if holds_many(field) else path[1:])
