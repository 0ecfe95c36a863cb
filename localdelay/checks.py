"""Numbers that callers give: refused by their argument's name if they are none. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def number(name: str, value: float, kind: str = "a number") -> float:
    """The value as a float, infinite where it is too large for one; a `TypeError` for what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {kind}, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def at_least(name: str, value: float, low: float, kind: str = "a number") -> float:
    """The value as a float; a `ValueError` unless it is finite and not below `low`."""
    given = number(name, value, kind)
    if not low <= given < math.inf:
        raise ValueError(f"{name} must be finite and at least {low}, not {given!r}")
    return given


def count(name: str, value: int) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def field_at_least(low: float) -> Callable[[object, Any, float], None]:
    """`at_least`, as a validator of an attrs field."""

    def check(_: object, attribute: Any, value: float) -> None:
        at_least(attribute.name, value, low)

    return check


def field_count(_: object, attribute: Any, value: int) -> None:
    """`count`, as a validator of an attrs field."""
    count(attribute.name, value)
