"""Durations and sizes as people write them, and numbers as people read them. Pure."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_SECONDS = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "": Fraction(1),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86_400),
}

_TIMES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BYTES = {
    "": 1,
    **{f"{unit}b": times for unit, times in _TIMES.items()},
    **{f"{unit}ib": 1 << power for unit, power in (("k", 10), ("m", 20), ("g", 30), ("t", 40))},
}

_AGES = 86_400e6
_LONGEST = 60
_LARGEST = 2**63 - 1
# Three digits of exponent at the most: an exact 10^999999999 would fill the memory.
_QUANTITY = re.compile(
    r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?)\s*([a-zµμ]*|%)\s*", re.IGNORECASE
)


def parse_duration(text: str) -> float:
    """Seconds, from `120`, `120s`, `2m` (or `2min`), `1.5h`, `1d`, `100ms` or `250us`, in either case.

    Raises ValueError for anything else, and for a negative one.
    """
    parts = _split(text)
    unit = parts[1].replace("µ", "u").replace("μ", "u") if parts else ""
    if parts is None or unit not in _SECONDS:
        raise ValueError(f"{_shown(text)} is no duration; write 120, 120s, 2m, 1.5h, 1d or 100ms")
    seconds = parts[0] * _SECONDS[unit]
    if seconds < 0:
        raise ValueError(f"a duration can't be negative, as {_shown(text)} is")
    return _float(seconds, text, "duration", "long")


def parse_size(text: str) -> int:
    """Bytes, from `500`, `500B`, `1kB` or `12MB` (decimal), or `12MiB` (binary), in either case.

    A fraction of a larger unit is rounded up to a whole byte. Raises ValueError for anything else, for
    a negative size, for a fraction of a byte, and for 2**63 bytes and more.
    """
    parts = _split(text)
    if parts is None or parts[1] not in _BYTES:
        raise ValueError(f"{_shown(text)} is no size; write 500, 500B, 12kB, 12MB, 12MiB or 1GB")
    number, unit = parts
    if number < 0:
        raise ValueError(f"a size can't be negative, as {_shown(text)} is")
    if _BYTES[unit] == 1 and number.denominator != 1:
        raise ValueError(f"{_shown(text)} is no whole number of bytes")
    size = math.ceil(number * _BYTES[unit])
    if size > _LARGEST:
        raise ValueError(f"{_shown(text)} is too large a size")
    return size


def parse_number(text: str) -> float:
    """A number, from `500`, `1e5`, `10k` or `1.5M`. Raises ValueError for anything else."""
    return _float(_number(text), text, "number")


def parse_count(text: str) -> int:
    """A whole number, written as for `parse_number`. Raises ValueError for anything else."""
    number = _number(text)
    if number.denominator != 1:
        raise ValueError(f"{_shown(text)} is no whole number")
    if abs(number) > _LARGEST:
        raise ValueError(f"{_shown(text)} is too large a number")
    return int(number)


def parse_share(text: str) -> float:
    """A part of a whole, from `30%` or `0.3`. Raises ValueError for anything else."""
    parts = _split(text)
    if parts is None or parts[1] not in ("", "%"):
        raise ValueError(f"{_shown(text)} is no share; write 30% or 0.3")
    return _float(parts[0] / (100 if parts[1] else 1), text, "share")


def _number(text: str) -> Fraction:
    parts = _split(text)
    if parts is None or parts[1] not in _TIMES:
        raise ValueError(f"{_shown(text)} is no number; write 500, 10k or 1.5M")
    return parts[0] * _TIMES[parts[1]]


def _float(exact: Fraction, text: str, what: str, size: str = "large") -> float:
    try:
        return float(exact)
    except OverflowError:
        raise ValueError(f"{_shown(text)} is too {size} a {what}") from None


def _split(text: str) -> tuple[Fraction, str] | None:
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    return (Fraction(match[1]), match[2].lower()) if match else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else text[:_LONGEST] + "...")


def three_digits(value: float) -> float:
    """The value, rounded to three digits."""
    return float(f"{value:.3g}")


def format_number(value: float) -> str:
    """`24,000`, `83.333`, `0.00012`: separators between thousands, at most three decimals or digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and abs(value) < 0.001:
        return f"{value:.3g}"
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def counted(number: int, noun: str) -> str:
    """`1 message`, `24,000 messages`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """`250 us`, `90.1 ms`, `1.5 s`, `2 min`, `36 h`, `7 d`: three digits, in the unit that suits them."""
    if seconds == 0:
        return "0 s"
    for limit, scale, unit in ((1e-3, 1e-6, "us"), (1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min")):
        # Rounded first, so that 0.9999 is "1 s" and not "1000 ms".
        if three_digits(seconds) < limit:
            return f"{format_number(three_digits(seconds / scale))} {unit}"
    scale, unit = (3600, "h") if seconds < 172_800 else (86_400, "d")
    if seconds >= _AGES:
        return f"{seconds / scale:.3g} {unit}"  # or it may have 300 digits
    return f"{format_number(three_digits(seconds / scale))} {unit}"


def format_size(size: int) -> str:
    """`500 B`, `12 MB`, `18.6 MB`: decimal units, three digits."""
    if size < 1000:
        return f"{size} B"
    for scale, unit in ((10**3, "kB"), (10**6, "MB"), (10**9, "GB")):
        if three_digits(size / scale) < 1000:
            return f"{format_number(three_digits(size / scale))} {unit}"
    return f"{format_number(three_digits(size / 10**12))} TB"
