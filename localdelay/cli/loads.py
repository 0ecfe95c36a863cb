"""What `bench` and `compare` share: the options of a load, its words, and how a measurement ends."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from localdelay.benchmark import plot
from localdelay.benchmark.load import Delays
from localdelay.benchmark.result import BenchError
from localdelay.cli.options import Parsed, option, parse_output
from localdelay.cli.terminal import Failed, Teller, can_be_live, stopped
from localdelay.signals import Stopped
from localdelay.units import format_duration, parse_duration

_SUFFIXES: Final = {"": 1.0, "k": 1e3, "m": 1e6}
_RATE: Final = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([km]?)\s*", re.IGNORECASE)


def parse_rate(text: str) -> tuple[float, float]:
    """Messages/s at the beginning and at the end, from `500`, `10k`, `1.5M` or `1k..100k`."""
    parts = [_RATE.fullmatch(part) for part in text.split("..", 1)] if len(text) < 100 else [None]
    first, last = parts[0], parts[-1]
    if first is None or last is None:
        raise ValueError(f"{text[:60]!r} is no rate; write 500, 10k, 1.5M or 1k..100k")
    return tuple(float(part[1]) * _SUFFIXES[part[2].lower()] for part in (first, last))  # type: ignore[return-value]


def parse_one_rate(text: str) -> float:
    """Messages/s, from `500`, `10k` or `1.5M`."""
    first, last = parse_rate(text)
    if first != last:
        raise ValueError(f"{text[:60]!r} is a ramp; write one rate, as 500 or 10k")
    return first


def parse_delays(text: str) -> Delays:
    """The delays, from one, as in `2s`, a range, as in `100ms..5s`, or several, as in `1s,5s,30s`."""
    if ".." in text:
        return Delays(tuple(map(parse_duration, text.split("..", 1))), is_range=True)
    return Delays(tuple(map(parse_duration, text.split(","))))


def parse_picture(text: str) -> Path:
    """A file for a picture: SVG or PNG."""
    path = parse_output(text)
    if path.suffix.lower() not in plot.SUFFIXES:
        raise ValueError(f"{text!r} must end in {' or '.join(plot.SUFFIXES)}")
    return path


def delays_in_words(delays: Delays) -> str:
    """`2 s`, `100 ms to 5 s`, `1 s, 5 s or 30 s`."""
    *others, last = map(format_duration, delays.values)
    return f"{', '.join(others)} {'to' if delays.is_range else 'or'} {last}" if others else last


RATE = Parsed("rate", parse_rate, lambda rate: f"{rate[0] / 1000:g}k")
ONE_RATE = Parsed("rate", parse_one_rate, lambda rate: f"{rate / 1000:g}k")
DELAYS = Parsed("delay", parse_delays, delays_in_words)
picture_option = option(
    "--plot picture", Parsed("file", parse_picture), "Draw a picture: FILE.svg or FILE.png."
)


@contextmanager
def measuring(picture: Path | None, as_json: bool, stopped_text: str) -> Iterator[Teller]:
    """A measurement, with who tells of its progress; what ends it is said in a line."""
    # What the library would log is in the report.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    if picture is not None and not plot.available():
        raise Failed("--plot needs matplotlib: pip install 'localdelay[plot]'")
    teller = Teller(live=can_be_live(), status=not as_json)
    try:
        with teller:
            yield teller
    except Stopped as error:
        stopped(error.signum, stopped_text)
    except (BenchError, ConnectionError, ModuleNotFoundError) as error:
        raise Failed(str(error)) from error


def written(path: Path, write: Callable[[], None]) -> str | None:
    """Why a file can't be written, or None if it is: another file may have room all the same."""
    try:
        write()
    except OSError as error:
        # The path as it was given: a full disk's error names none.
        return f"{str(path)!r} can't be written: {error.strerror or error}"
    return None
