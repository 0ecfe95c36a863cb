"""What callers give: refused by the argument's name if it is wrong, and made into what is kept. Pure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

import attrs

Delay: TypeAlias = float | timedelta
"""Seconds, or a `timedelta`."""
Terms: TypeAlias = tuple[float | None, float | None]
"""(seconds past its execute-at until a message expires, the Unix time that it was put for)"""

_AWAITED = ("Awaitable", "Coroutine", "Future", "Task")
"""What is said to be returned by functions that are no `async def`, and can be awaited."""

LATEST = 1e15
"""Seconds: 30 million years, and still exact to a tenth of a second."""


class NotGiven(Enum):
    """An argument that was not given, where None means something."""

    NOT_GIVEN = "not given"


NOT_GIVEN = NotGiven.NOT_GIVEN


@contextmanager
def renamed(old: str, new: str) -> Iterator[None]:
    """What a block refuses by one name of an argument is refused by another."""
    try:
        yield
    except ValueError as error:
        name, _, reason = str(error).partition(" ")
        if name != old:
            raise
        raise ValueError(f"{new} {reason}") from None


def check_kind(name: str, value: object, kind: Any, told: str) -> None:
    """Raise a `TypeError` unless it is one of these, which an error calls so."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {told}, not {type(value).__name__}")


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


def delay_of(name: str, value: Delay) -> float:
    """A delay in seconds; a `ValueError` unless it is finite and not negative."""
    given = value.total_seconds() if isinstance(value, timedelta) else value
    return at_least(name, given, 0, "a number of seconds")


def count(name: str, value: int) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return value


def field_at_least(low: float, kind: str = "a number") -> Callable[[object, Any, float], None]:
    """`at_least`, as a validator of an attrs field."""

    def check(_: object, attribute: Any, value: float) -> None:
        at_least(attribute.name, value, low, kind)

    return check


def field_count(_: object, attribute: Any, value: int) -> None:
    """`count`, as a validator of an attrs field."""
    count(attribute.name, value)


field_count_or_none: Callable[[object, Any, Any], None] = attrs.validators.optional(field_count)
"""The same, where None may stand for no bound."""


def execute_at(
    now: float, delay: Delay | None, at: datetime | None, *, wall: datetime | None = None
) -> float:
    """When a message is due, in seconds on the clock that `now` was read from.

    `delay` is from now; `at` is an aware datetime, and one in the past means now. Exactly one of them must
    be given. `wall` is the wall-clock time, now by default; to be never early it must have been read before
    `now`.
    """
    if at is None:
        if delay is None:
            raise TypeError("one of delay and at must be given")
        if isinstance(delay, timedelta):
            delay = delay.total_seconds()
        return now + at_least("delay", delay, 0, "a number of seconds")
    if delay is not None:
        raise TypeError("only one of delay and at may be given")
    check_kind("at", at, datetime, "a datetime")
    try:
        offset = at.utcoffset()
        left = (at - (wall or datetime.now(UTC))).total_seconds() if offset is not None else 0.0
    except Exception as error:  # its time zone is a stranger's
        kind = type(error).__name__
        raise ValueError(f"at must be an aware datetime: its time zone raises {kind}") from error
    if offset is None:
        raise ValueError("at must be an aware datetime: it has no time zone")
    return now + max(0.0, left)


def wall_clock(at: datetime | None) -> datetime | None:
    """The wall-clock time, where an `at` makes it matter."""
    return None if at is None else datetime.now(UTC)


def terms(expires: Delay | None, at: datetime | None) -> Terms | None:
    """What is kept of a checked `at` and of `expires`, which is checked here; None for neither."""
    if expires is None and at is None:
        return None
    return None if expires is None else delay_of("expires", expires), None if at is None else at.timestamp()


def check_payload(payload: bytes) -> bytes:
    """The payload, as exact bytes."""
    check_kind("payload", payload, bytes, "bytes")
    return bytes(payload)


def check_id(id: str) -> str:
    """The id, as an exact string; raises unless it can stand in a log line and in a broker's header."""
    check_kind("id", id, str, "a string")
    exact = str.__str__(id)  # a class may compare, and encode, as it likes
    if not exact or not exact.isprintable():
        raise ValueError("id must be a string of one or more printable characters")
    return exact


def check_headers(headers: Mapping[str, str]) -> dict[str, str] | None:
    """A copy of the headers, of exact strings, or None where there are none."""
    check_kind("headers", headers, Mapping, "a mapping of strings")
    copy = {}
    for given in dict(headers).items():
        if not all(isinstance(each, str) for each in given):
            raise TypeError("headers must be a mapping of strings to strings")
        name, value = map(str.__str__, given)
        copy[name] = value
        try:
            name.encode()
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"headers must be text that UTF-8 can carry, which {name!r} is not") from None
    return copy or None


def check_seconds(name: str, value: float | None, *, zero: bool) -> float:
    """A number of seconds, infinite for None."""
    if value is None:
        return math.inf
    seconds = number(name, value, "a number of seconds or None")
    if not (seconds >= 0 if zero else seconds > 0):
        raise ValueError(f"{name} must {'not be negative' if zero else 'be more than 0'}, not {seconds!r}")
    return seconds


def is_async(function: object) -> bool:
    """Whether this is an async function, or an object that is called like one."""
    return any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None))))  # noqa: B004


def check_callable(name: str, function: object) -> None:
    """Raise a `TypeError` unless this can be called."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, not {type(function).__name__}")


def check_async(name: str, function: object) -> None:
    """Raise a `TypeError` unless this can be called, and what it returns may well be awaited."""
    if not callable(function):
        raise TypeError(f"{name} must be an async function, not {type(function).__name__}")
    if not is_async(function) and _is_plain(function):
        raise TypeError(
            f"{name} must be an async function, not an ordinary one: write `async def`; "
            "one that blocks is for localdelay.threads, or on Trio for localdelay.blocking"
        )


def _is_plain(function: Any) -> bool:
    """Whether to call it is all there is to it: it is a `def` that names nothing to be awaited."""
    # To find that out by a call, when a message is due, would be to send it.
    while isinstance(function, partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    function = inspect.unwrap(getattr(function, "__func__", function))
    if inspect.iscoroutinefunction(function) or getattr(function, "__name__", "") == "<lambda>":
        return False
    returned = str(getattr(function, "__annotations__", {}).get("return", ""))
    is_ours = inspect.isfunction(function) or inspect.isbuiltin(function)
    return is_ours and not any(word in returned for word in _AWAITED)
