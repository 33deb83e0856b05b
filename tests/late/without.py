"""Leave a wait out of a function of the package, inside this process."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from types import FunctionType, ModuleType
from typing import Any

from tests.mistakes.change import changed


def _function_of(value: Any) -> FunctionType:
    """Return the function inside its decorators."""
    return inspect.unwrap(value.func if isinstance(value, cached_property) else value)


@contextmanager
def without(module: ModuleType, where: str, old: str, new: str = "") -> Iterator[None]:
    """Replace a function's code by code in which the pattern `old` is replaced; see `tests.mistakes.change`.

    Args:
        where: qualified name of the function.
    """
    copy: dict[str, Any] = {"__name__": module.__name__}
    text = changed(inspect.getsource(module), where, old, new)
    exec(compile(text, module.__file__ or "", "exec"), copy)
    *owners, name = where.split(".")
    owner: Any = module
    source: Any = copy
    for part in owners:
        owner, source = getattr(owner, part), vars(source)[part] if not isinstance(source, dict) else source[part]
    function = _function_of(vars(owner)[name])
    other = _function_of(vars(source)[name] if owners else source[name])
    right, function.__code__ = function.__code__, other.__code__
    try:
        yield
    finally:
        function.__code__ = right
