"""Durations and sizes as people write them, and numbers as they read them."""

from __future__ import annotations

from collections.abc import Callable

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdelay.cli.options import DURATION, SIZE
from localdelay.units import (
    format_duration,
    format_number,
    format_size,
    parse_count,
    parse_duration,
    parse_number,
    parse_share,
    parse_size,
)


def test_durations_are_read_in_seconds() -> None:
    """Every way to write a duration comes out as the nearest float of its seconds."""
    written = {
        120.0: ["120", "120s", "120 s", " 120 ", "2m", "2min"],
        0.1: ["100ms", "100MS", "0.1"],
        0.00025: ["250us", "250\N{MICRO SIGN}s", "250\N{GREEK SMALL LETTER MU}s"],
        5.0: ["+5s", "5."],
        1000.0: ["1e3"],
        0.001: ["1e-3s"],
        5400.0: ["1.5h"],
        86_400.0: ["1d"],
        0.5: [".5s"],
        0.0: ["0"],
    }
    for seconds, texts in written.items():
        assert [parse_duration(text) for text in texts] == [seconds] * len(texts)


@given(st.integers(0, 10**9))
def test_milliseconds_are_exact(count: int) -> None:
    """A count of ms reads as the float next to that many thousandths, as the same text in seconds does."""
    assert parse_duration(f"{count}ms") == parse_duration(f"{count / 1000!r}s") == count / 1000


def test_sizes_are_read_in_bytes() -> None:
    """Decimal and binary units, exactly; a fraction of a unit is rounded up to a byte."""
    written = {
        500: ["500", "500B", "500 b"],
        1_000: ["1kB", "1KB", "1e3"],
        1_500: ["1.5kB"],
        1_024: ["1KiB"],
        12_000_000: ["12MB", "12mb"],
        12 * 2**20: ["12MiB"],
        104_858: ["0.1MiB"],  # 104,857.6
        2 * 10**9: ["2GB"],
        2 * 2**30: ["2GiB"],
        10**12: ["1TB"],
        2**40: ["1TiB"],
        0: ["0"],
        2**53 + 1: ["9007199254740993"],  # no float holds it
    }
    for size, texts in written.items():
        assert [parse_size(text) for text in texts] == [size] * len(texts)


NONE = ["", "x", "nan", "inf", "-inf", "1,000", "1e9999", "9" * 61]
NO_DURATIONS = ["s", "12 34", "2m30s", "1_000", "5w", "5MB", "--5", "٣s", "0x10"]


@pytest.mark.parametrize(
    ("parse", "said", "texts"),
    [
        (parse_duration, r"is no duration; write 120, 120s, 2m, 1\.5h, 1d or 100ms$", NONE + NO_DURATIONS),
        (parse_duration, "^a duration can't be negative, as '{}' is$", ["-1", "-0.5s", "-2m"]),
        (parse_duration, "^'{}' is too long a duration$", ["1e400"]),
        (parse_size, "is no size; write 500, 500B, 12kB, 12MB, 12MiB or 1GB$", NONE),
        (parse_size, "is no size; write ", ["B", "12M", "1k", "12 M B", "5s"]),  # k and M mean two things
        (parse_size, "^a size can't be negative, as '{}' is$", ["-1", "-1B", "-0.5kB"]),
        (parse_size, "^'{}' is no whole number of bytes$", ["0.5", "1.5B", "1e-3"]),
        (parse_number, "^'{}' is no number; write 500, 10k or 1.5M$", ["nan", "5s"]),
        (parse_number, "^'{}' is too large a number$", ["1e999"]),
        (parse_count, r"^'{}' is no whole number$", ["1.5"]),
        (parse_count, "^'{}' is too large a number$", ["1e30"]),
        (parse_share, "^'{}' is no share; write 30% or 0.3$", ["half"]),
        (parse_share, "^'{}' is too large a share$", ["1e999", "-1e400", "1e320%"]),
    ],
)
def test_what_cannot_be_read_is_refused(parse: Callable[[str], float], said: str, texts: list[str]) -> None:
    """The error shows what was written, and how to write it or what is wrong with it."""
    for text in texts:
        with pytest.raises(ValueError, match=said.format(text)):
            parse(text)


def test_errors_stay_on_one_short_line() -> None:
    """What was typed is quoted, with its line breaks escaped and its length bounded."""
    with pytest.raises(ValueError, match="is no duration") as caught:
        parse_duration("a\nb" * 1000)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 150


def test_the_option_types_convert_text_and_keep_defaults() -> None:
    """A default is a number in the base unit and passes as it is."""
    assert DURATION.convert("2m", None, None) == 120.0
    assert DURATION.convert(0.1, None, None) == 0.1
    assert SIZE.convert("12MB", None, None) == 12_000_000
    assert SIZE.convert(500, None, None) == 500


@pytest.mark.parametrize(("kind", "message"), [(DURATION, "'x' is no duration"), (SIZE, "'x' is no size")])
def test_the_option_types_refuse_as_click_does(kind: click.ParamType, message: str) -> None:  # type: ignore[type-arg]
    """A bad value is a `BadParameter`, which click shows with the option's name."""
    with pytest.raises(click.BadParameter, match=message):
        kind.convert("x", None, None)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500", 500), ("1e5", 1e5), ("100k", 1e5), ("1.5M", 1.5e6), (".5 K", 500), ("-1", -1)],
)
def test_numbers_are_read_with_their_thousands(text: str, number: float) -> None:
    """A k is a thousand and an M a million, for numbers and for counts."""
    assert parse_number(text) == number
    assert parse_count(text) == number


def test_shares_are_read_as_parts_of_one() -> None:
    """In percent, or as they are."""
    assert parse_share("30%") == parse_share("0.3") == 0.3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (24_000, "24,000"),
        (24_000.0, "24,000"),
        (0, "0"),
        (0.0, "0"),
        (0.5, "0.5"),
        (83.33333, "83.333"),
        (1_234_567.891, "1,234,567.891"),
        (0.0001234, "0.000123"),
        (10**20, "100,000,000,000,000,000,000"),
    ],
)
def test_numbers_are_written_with_separators(value: float, text: str) -> None:
    """Thousands apart, no trailing zeros, and small numbers not lost."""
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00025, "250 us"),
        (0.001, "1 ms"),
        (0.0848653, "84.9 ms"),
        (0.1, "100 ms"),
        (0.99999, "1 s"),
        (1.5, "1.5 s"),
        (119, "119 s"),
        (120, "2 min"),
        (300, "5 min"),
        (5_400, "90 min"),
        (7_200, "2 h"),
        (129_600, "36 h"),
        (604_800, "7 d"),
        (86_400 * 999_000.0, "999,000 d"),
        (86_400e9, "1e+09 d"),
        (1e308, "1.16e+303 d"),
    ],
)
def test_durations_are_written_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    """Three digits, and never 1000 of one unit for 1 of the next."""
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (999_999, "1 MB"),
        (12_000_000, "12 MB"),
        (18_552_000, "18.6 MB"),
        (6_000_000_000, "6 GB"),
        (5 * 10**12, "5 TB"),
        (10**15, "1,000 TB"),
    ],
)
def test_sizes_are_written_in_decimal_units(size: int, text: str) -> None:
    """Three digits in the largest unit that leaves a whole."""
    assert format_size(size) == text


@given(st.floats(1e-6, 1e7))
def test_a_written_duration_reads_back(seconds: float) -> None:
    """What is printed can be typed in again, to its three digits."""
    assert parse_duration(format_duration(seconds).replace(",", "")) == pytest.approx(seconds, rel=0.006)
