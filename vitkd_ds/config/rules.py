"""What a field of a run may hold. Its annotation says it, once for the check and for the text of --help:
`lr: Annotated[float, POSITIVE]`, or `placement: Literal["shard", "replica", "offload"]`."""

from typing import Any, Callable, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Rule(NamedTuple):
    """A condition on a value, in words and as a test."""

    must: str
    holds: Callable[[Any], bool]


POSITIVE = Rule("be positive", lambda value: value > 0)


def at_least(low: int, meaning: str = "") -> Rule:
    """The rule for `low` or more; `meaning` is what `low` stands for, such as off."""
    return Rule(f"be {low} ({meaning}) or more" if meaning else f"be {low} or more", lambda value: value >= low)


def within(interval: str) -> Rule:
    """The rule for an interval, such as "[0, 1)": a square bracket includes its end."""
    low, high = map(float, interval[1:-1].split(","))
    ends = {low if interval[0] == "[" else None, high if interval[-1] == "]" else None}
    return Rule(f"be in {interval}", lambda value: low < value < high or value in ends)


def rules_of(cls: type) -> dict[str, Rule]:
    """The rule of each field that has one."""
    rules = {}
    for name, declared in get_type_hints(cls, include_extras=True).items():
        words = get_args(declared)
        if get_origin(declared) is Literal:
            rules[name] = Rule(f"be one of {', '.join(words)}", words.__contains__)
        elif words and isinstance(words[-1], Rule):
            rules[name] = words[-1]
    return rules


class Part:
    """A part of a run, which checks its fields when it is made. `place` is its key in the run, such as optim."""

    def __init_subclass__(cls, *, place: str) -> None:
        cls._place = place

    def __post_init__(self) -> None:
        for name, rule in rules_of(type(self)).items():
            value = getattr(self, name)
            require(rule.holds(value), f"{self._place}.{name}".lstrip("."), value, rule.must)


def require(holds: bool, key: str, found: Any, must: str) -> None:
    """Raise ValueError unless `holds`; the message names the key, what was found and what must hold."""
    if not holds:
        raise ValueError(f"{key} must {must}, found {found!r}: change it in the recipe or with --{key}")
