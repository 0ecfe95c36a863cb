"""Checking what a caller gives to `put`, and stamping it with its execute-at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime


def execute_at(now: float, delay: float | None, at: datetime | None) -> float:
    """When a message is due, in seconds on the clock that `now` was read from.

    `delay` is in seconds from now; `at` is an aware datetime, and one in the past means now. Exactly
    one of them must be given.
    """
    if at is None:
        if delay is None:
            raise TypeError("one of delay and at must be given")
        if isinstance(delay, bool) or not isinstance(delay, int | float):
            raise TypeError(f"delay must be a number of seconds, not {type(delay).__name__}")
        if not 0 <= delay < math.inf:
            raise ValueError(f"delay must be a finite number of seconds and not negative, not {delay!r}")
        try:
            return now + delay
        except OverflowError:
            raise ValueError("delay must be a finite number of seconds") from None
    if delay is not None:
        raise TypeError("only one of delay and at may be given")
    if not isinstance(at, datetime):
        raise TypeError(f"at must be a datetime, not {type(at).__name__}")
    if at.utcoffset() is None:
        raise ValueError("at must be an aware datetime: it has no time zone")
    return now + max(0.0, (at - datetime.now(UTC)).total_seconds())


def check_payload(payload: bytes) -> bytes:
    """The payload, as exact bytes."""
    if not isinstance(payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
    return bytes(payload)


def check_id(id: str) -> None:
    """Raise unless the id can stand in a log line and in a broker's header."""
    if not isinstance(id, str):
        raise TypeError(f"id must be a string, not {type(id).__name__}")
    if not id or not id.isprintable():
        raise ValueError("id must be a string of one or more printable characters")


def check_headers(headers: Mapping[str, str]) -> dict[str, str] | None:
    """A copy of the headers, or None where there are none."""
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping of strings, not {type(headers).__name__}")
    copy = dict(headers)
    for name, value in copy.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError("headers must be a mapping of strings to strings")
        try:
            name.encode()
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"headers must be text that UTF-8 can carry, which {name!r} is not") from None
    return copy or None


def check_count(name: str, value: int) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def check_seconds(name: str, value: float | None, *, zero: bool) -> float:
    """A number of seconds, infinite for None."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if math.isnan(value) or value < 0 or (value == 0 and not zero):
        least = "not be negative" if zero else "be more than 0"
        raise ValueError(f"{name} must {least}, not {value!r}")
    return value


def check_instant(name: str, value: float) -> float:
    """A finite instant on Trio's clock, in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return value


def check_async(name: str, function: object) -> None:
    """Raise unless this can be called."""
    if not callable(function):
        raise TypeError(f"{name} must be an async function, not {type(function).__name__}")
