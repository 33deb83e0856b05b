"""Numbers of random orders that the tests of this folder try."""

from collections.abc import Iterable
from typing import Any

import pytest


def in_orders(few: int, *, many: int, each: int = 50, marks: Any = ()) -> Any:
    """Parametrize a test by `orders`, an iterable of seeds: `few` in each run, `many` in tests with the mark long.

    Args:
        each: seeds per long test.
        marks: marks of the test with few orders.
    """
    cases: list[Any] = [pytest.param(range(few), id="few", marks=marks)]
    for first in range(few, many, each):
        orders: Iterable[int] = range(first, min(first + each, many))
        cases.append(pytest.param(orders, id=f"from {first}", marks=pytest.mark.long))
    return pytest.mark.parametrize("orders", cases)
