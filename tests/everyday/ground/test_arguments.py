"""Checking and stamping what callers give: every rejection names its argument."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdelay import arguments

HUGE = 10**400
"""An int that no float can hold."""
INDIA = timezone(timedelta(hours=5, minutes=30))


class LikeFloat64(float):
    """What `numpy.float64` is to Python: a float of another type."""


class LikeInt(int):
    """An int of another type."""


class LikeStr(str):
    __slots__ = ()


class LikeBytes(bytes):
    """What `numpy.bytes_` is to Python."""


class Fixed(datetime):
    """A datetime whose `now` stands still."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Fixed:
        return cls(2030, 1, 1, 12, 0, 0, tzinfo=tz)


@pytest.fixture
def noon(monkeypatch: pytest.MonkeyPatch) -> datetime:
    monkeypatch.setattr(arguments, "datetime", Fixed)
    return Fixed.now(UTC)


@given(now=st.floats(0, 1e12), delay=st.one_of(st.floats(0, 1e12), st.integers(0, 10**12)))
def test_a_delay_counts_from_now(now: float, delay: float) -> None:
    """execute-at is the clock's reading plus the delay, and no rounding makes it earlier than now."""
    due = arguments.execute_at(now, delay, None)
    assert due == now + delay
    assert due >= now


CHECKS: dict[str, Callable[[Any], object]] = {
    "delay": lambda value: arguments.execute_at(5.0, value, None),
    "capacity": lambda value: arguments.count("capacity", value),
    "grace": lambda value: arguments.check_seconds("grace", value, zero=True),
    "send_timeout": lambda value: arguments.check_seconds("send_timeout", value, zero=False),
}
every_check = pytest.mark.parametrize("name", CHECKS)


@every_check
@pytest.mark.parametrize("value", ["1", b"1", True, False, Decimal(1), Fraction(1), 1j, [1]], ids=repr)
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    """A foreign value, and a bool, too, is a `TypeError` that begins with the argument's name."""
    with pytest.raises(TypeError, match=rf"^{name} must be"):
        CHECKS[name](value)


@every_check
@pytest.mark.parametrize("value", [-math.inf, math.nan, LikeFloat64("nan"), -HUGE], ids=range(4))
def test_a_number_that_is_no_time_and_no_count_is_refused(name: str, value: Any) -> None:
    """So is NaN, and what is infinite or as good as that; for a count these are of the wrong type."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name} must"):
        CHECKS[name](value)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("delay", [-0.001, -1, -5e-324, LikeFloat64(-1), math.inf, HUGE]),
        ("capacity", [0, -1, LikeInt(0)]),
        ("grace", [-0.001, -1]),
        ("send_timeout", [-0.001, 0, -0.0]),
    ],
    ids=list(CHECKS),
)
def test_a_number_out_of_its_range_is_refused(name: str, values: list[Any]) -> None:
    """Each is a `ValueError` that begins with the argument's name."""
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} must"):
            CHECKS[name](value)


def test_one_of_delay_and_at_must_be_given() -> None:
    """Neither is an error and so are both, whatever their values."""
    with pytest.raises(TypeError, match="one of delay and at must be given"):
        arguments.execute_at(0.0, None, None)
    with pytest.raises(TypeError, match="only one of delay and at"):
        arguments.execute_at(0.0, 0, datetime.now(UTC))
    with pytest.raises(TypeError, match="only one of delay and at"):
        arguments.execute_at(0.0, -1, "tomorrow")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ahead", "due"),
    [
        (timedelta(0), 100.0),
        (timedelta(microseconds=1), 100.000001),
        (timedelta(seconds=120), 220.0),
        (timedelta(days=36525), 100.0 + 36525 * 86400),
        (timedelta(microseconds=-1), 100.0),
        (timedelta(days=-36525), 100.0),
    ],
)
@pytest.mark.parametrize("zone", [UTC, INDIA, timezone(timedelta(hours=-12))])
def test_at_is_an_instant_of_wall_time(ahead: timedelta, due: float, zone: tzinfo, noon: datetime) -> None:
    """`at` counts from the wall clock in any time zone, and what is past is due now."""
    assert arguments.execute_at(100.0, None, (noon + ahead).astimezone(zone)) == pytest.approx(due, abs=1e-9)
    assert arguments.execute_at(100.0, None, (noon + ahead).astimezone(zone)) >= 100.0


@pytest.mark.parametrize("offset", [-23.99, -12, 0, 12, 23.99])
def test_at_may_be_the_end_or_the_beginning_of_time(offset: float) -> None:
    """The latest and the earliest datetime overflow nothing, in any time zone."""
    zone = timezone(timedelta(hours=offset))
    latest = arguments.execute_at(5.0, None, datetime.max.replace(tzinfo=zone))
    assert 7900 * 365 * 86400 < latest < 8000 * 366 * 86400
    assert arguments.execute_at(5.0, None, datetime.min.replace(tzinfo=zone)) == 5.0


class Nowhere(tzinfo):
    """A time zone that does not say what its offset is: such a datetime is naive to Python."""

    def utcoffset(self, dt: datetime | None) -> None:
        return None

    dst = tzname = utcoffset


class Lost(Nowhere):
    """A time zone that fails."""

    def utcoffset(self, dt: datetime | None) -> None:
        raise LookupError


LOST = datetime(2030, 1, 1, tzinfo=Lost())


def test_an_at_that_is_none_is_refused() -> None:
    """A naive datetime is a `ValueError` and what is no datetime a `TypeError`, both by name."""
    naive = [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Nowhere()), datetime.max, LOST]  # noqa: DTZ001, DTZ901
    foreign = [
        date(2030, 1, 1),
        1893456000,
        1893456000.0,
        "2030-01-01T00:00:00Z",
        timedelta(seconds=1),
        False,
    ]
    for error, values in ((ValueError, naive), (TypeError, foreign)):
        for at in values:
            with pytest.raises(error, match=r"^at "):
                arguments.execute_at(0.0, None, at)  # type: ignore[arg-type]


def test_a_payload_is_bytes() -> None:
    """Exact bytes are taken as they are, and a child class is made into exact bytes."""
    payload = b"\0\xff" * 100
    assert arguments.check_payload(payload) is payload
    plain = arguments.check_payload(LikeBytes(b"abc"))
    assert type(plain) is bytes
    assert plain == b"abc"
    assert arguments.check_payload(b"") == b""


@pytest.mark.parametrize("payload", ["text", bytearray(b"x"), memoryview(b"x"), None, 5, [120], object()])
def test_a_payload_that_is_no_bytes_is_refused(payload: Any) -> None:
    """Text, and buffers that could change while they wait, are refused; the payload is not in the message."""
    with pytest.raises(TypeError, match=r"^payload must be bytes") as caught:
        arguments.check_payload(payload)
    assert "text" not in str(caught.value)


@pytest.mark.parametrize("id", ["a", "order 7", "ünïcode-1", LikeStr("x"), "a" * 1000, "0"])
def test_an_id_is_printable_text(id: str) -> None:
    """Any text that can stand in a log line and a header is an id, and is kept as exact text."""
    assert type(arguments.check_id(id)) is str
    assert arguments.check_id(id) == str(id)


def test_an_id_that_is_none_is_refused() -> None:
    """Nothing that could break a line or a header gets to be an id."""
    wrong = {ValueError: ["", "a\nb", "a\r", "\0", "\x7f", "a\u2028b", "\udc80"], TypeError: [b"id", 7, None]}
    for error, values in wrong.items():
        for id in values:
            with pytest.raises(error, match=r"^id "):
                arguments.check_id(id)  # type: ignore[arg-type]


class Pairs(Mapping[str, str]):
    """A mapping that is no dict."""

    def __init__(self, pairs: dict[str, str]) -> None:
        self._pairs = pairs

    def __getitem__(self, name: str) -> str:
        return self._pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


@pytest.mark.parametrize("kind", [dict, OrderedDict, MappingProxyType, Pairs])
def test_headers_are_copied(kind: Any) -> None:
    """Any mapping will do, and what the caller does to it later is not seen."""
    original = {"k": "v", "é": "€"}
    copy = arguments.check_headers(kind(original))
    original["k"] = "changed"
    assert type(copy) is dict
    assert copy == {"k": "v", "é": "€"}
    assert arguments.check_headers(kind({})) is None
    own = arguments.check_headers(kind({LikeStr("k"): LikeStr("v")})) or {}
    assert {type(each) for pair in own.items() for each in pair} == {str}


def test_headers_that_are_none_are_refused() -> None:
    """Headers are a mapping of text to text that UTF-8 can carry, or are refused by name."""
    foreign = [{"k": 1}, {"k": b"v"}, {"k": None}, {1: "v"}, {b"k": "v"}, {"fine": "v", "k": 1}]
    no_mappings = [[("k", "v")], "k", {"k"}, 5]
    unfit = [{"k": "\udc80"}, {"\udc80": "v"}]
    for error, values in ((TypeError, [*foreign, *no_mappings]), (ValueError, unfit)):
        for headers in values:
            with pytest.raises(error, match=r"^headers must"):
                arguments.check_headers(headers)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1, 24_000, LikeInt(3), pytest.param(HUGE, id="huge")])
def test_a_count_is_a_whole_number(value: int) -> None:
    """Counts may be as large as one likes."""
    assert arguments.count("capacity", value) == value


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("value", [1, 0.5, 5e-324, LikeFloat64(2.5), LikeInt(3), math.inf])
def test_seconds_are_any_number(value: float, zero: bool) -> None:
    """A number of seconds comes back as it is; None means no limit, as does one that no clock can reach."""
    assert arguments.check_seconds("grace", value, zero=zero) == value
    assert arguments.check_seconds("grace", None, zero=zero) == math.inf
    long = arguments.check_seconds("grace", HUGE, zero=zero)
    assert 1.5 + long > 1e300


@pytest.mark.parametrize("value", [0, 0.0, -0.0])
def test_zero_seconds_are_allowed_where_they_mean_something(value: float) -> None:
    """A grace of 0 is one, a timeout of 0 is none, and the message says which."""
    assert arguments.check_seconds("grace", value, zero=True) == 0
    with pytest.raises(ValueError, match=r"^send_timeout must be more than 0"):
        arguments.check_seconds("send_timeout", value, zero=False)


def test_what_may_return_an_awaitable_is_taken() -> None:
    """Of a lambda nobody can tell before it is called; a `def` is refused, unless it says so."""
    arguments.check_async("send", lambda message: message)
    with pytest.raises(TypeError, match="send must be an async function, not an ordinary one"):
        arguments.check_async("send", test_what_may_return_an_awaitable_is_taken)
