"""Base of the settings classes: frozen pydantic dataclasses whose errors and --help are worded here.

A field's annotation says what it may hold, once for the check and for the text: `lr: Annotated[Number, Gt(0)]`, or
`placement: Literal["shard", "replica", "offload"]`. The string below the field is its help.
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
    tuple: "numbers with commas, such as 0.08,1",
    collections.abc.Mapping: 'a JSON object, such as {"depth": 4}',
}
"""Words for the values of a type; any other type takes text as it is."""


@dataclasses.dataclass(frozen=True)
class Rule(Predicate):
    """A condition on a value with the words for it: "two numbers", not "must be two numbers"."""

    must: str


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
    """A part of a run, made a dataclass by pydantic; `place` is its key in the run, such as optim."""

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


def locate(cls: Any, path: Sequence[str]) -> tuple[Any, FieldInfo | None]:
    """Return the class in which a path of names ends, and its field there: None if it has none, or a part."""
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
    """Say in words what a setting must be."""
    if rules := [item.must for item in field.metadata if isinstance(item, Rule)]:
        return rules[0]
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    kind = KINDS.get(get_origin(field.annotation) or field.annotation, "text")
    found = [(name, getattr(item, name, None)) for item in field.metadata for name in ("gt", "ge", "lt", "le")]
    limits = {name: limit for name, limit in found if limit is not None}
    if len(limits) < 2:
        words = {"gt": " above {}", "ge": ", {} or more", "lt": " below {}", "le": ", {} or less"}
        return kind + "".join(words[name].format(limit) for name, limit in limits.items())
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}"
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})"
    return f"{kind} in {low}, {high}"


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError unless `holds`; the message names the key, what must hold and what was found."""
    if not holds:
        raise ValueError(f"{key} must {must}, got {repr(found)[:80]}. Change it in the recipe or with --{key}.")


def explain(error: ValidationError, cls: Any) -> str:
    """Say the first problem that pydantic found in a settings class, with the evidence and the remedy."""
    first = error.errors(include_url=False)[0]
    names = [name for name in first["loc"] if isinstance(name, str)]  # without the index in a tuple
    key = shortened(".".join(filter(None, (cls._place, *names))))
    owner, field = locate(cls, names)
    if first["type"] in ("value_error", "assertion_error"):  # of a check with a message of its own
        return f"{key}: {first['ctx']['error']}" if field else str(first["ctx"]["error"])
    if first["type"] == "missing" and first["loc"][-1] == names[-1]:
        return f"{key} is missing. Set it in the recipe or with --{key}."
    if first["type"] == "unexpected_keyword_argument":
        (close,) = difflib.get_close_matches(names[-1], owner.__pydantic_fields__, n=1, cutoff=0)
        return f"{key} is no setting of this version. Remove it, or use the nearest, {close}."
    must = what(field) if field else "a JSON object"
    return f"{key or 'a run'} must be {must}, got {repr(first['input'])[:80]}. Change it in the recipe or with --{key}."
