"""What the commands share of their options: how values are written, and how a wrong one is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from localdelay.benchmark import plot
from localdelay.benchmark.load import Delays
from localdelay.benchmark.result import Settings
from localdelay.brokers import hide_secrets
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

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


# Newer releases of click have a generic ParamType, older ones one that can't be subscripted.
class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option that a function parses, which raises `ValueError`."""

    def __init__(self, name: str, parse: Callable[[str], Any], shown: Callable[[Any], str] = str) -> None:
        self.name = name
        self.shown = shown
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the function makes of a text or of a number in a file; anything else is a default."""
        if not isinstance(value, str | int | float):
            return value
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_rate(text: str) -> tuple[float, float]:
    """Messages/s at the beginning and at the end, from `500`, `10k` or `1k..100k`."""
    first, _, last = text.partition("..")
    return parse_number(first), parse_number(last if ".." in text else first)


def parse_delays(text: str) -> Delays:
    """The delays, from one, as in `2s`, a range, as in `100ms..5s`, or several, as in `1s,5s,30s`."""
    if ".." in text:
        return Delays(tuple(map(parse_duration, text.split("..", 1))), is_range=True)
    return Delays(tuple(map(parse_duration, text.split(","))))


def delays_in_words(delays: Delays) -> str:
    """`2 s`, `100 ms to 5 s`, `1 s, 5 s or 30 s`."""
    *others, last = map(format_duration, delays.values)
    return f"{', '.join(others)} {'to' if delays.is_range else 'or'} {last}" if others else last


def parse_output(text: str) -> Path:
    """A file that can be written: better to know before a long run than after it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{text!r} is no file in a directory that there is")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text!r} can't be written")
    return path


def parse_picture(text: str) -> Path:
    """A file for a picture: SVG or PNG."""
    path = parse_output(text)
    if path.suffix.lower() not in plot.SUFFIXES:
        raise ValueError(f"{text!r} must end in {' or '.join(plot.SUFFIXES)}")
    return path


def parse_port(text: str) -> int:
    """The number of a port."""
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise ValueError(f"{text!r} is no port: write a number up to 65535, or 0 for one that is free")
    return int(text)


COUNT = Parsed("count", parse_count, format_number)
NUMBER = Parsed("number", parse_number, format_number)
SHARE = Parsed("share", parse_share, lambda share: f"{share:.0%}")
DURATION = Parsed("duration", parse_duration, format_duration)
SIZE = Parsed("size", parse_size, format_size)
RATE = Parsed("rate", parse_rate, lambda rate: format_number(rate[0]))
DELAYS = Parsed("delay", parse_delays, delays_in_words)
OUTPUT = Parsed("file", parse_output)
PICTURE = Parsed("file", parse_picture)
PORT = Parsed("port", parse_port)


def option(
    names: str, type: Any, help: str, default: Any = None, *, unset: str | None = None, **more: Any
) -> Callable[[_Decorated], _Decorated]:
    """An option, or a flag where its type is bool; its help ends with its default, as people write it.

    `unset` says what happens without it, where that is no value or one that is written in another way.
    `names` are separated by spaces, as in `--json as_json`.
    """
    kind = {int: COUNT, float: NUMBER}.get(type, type)
    if default is not None:
        more["default"] = default
        unset = unset or getattr(kind, "shown", str)(default)
    told = help if unset is None else f"{help}  [default: {unset}]"
    if type is bool:
        return click.option(*names.split(), is_flag=True, help=told, **more)
    return click.option(*names.split(), type=kind, help=told, **more)


def _together(*options: Callable[[Any], Any]) -> Callable[[_Decorated], _Decorated]:
    """Several options that commands have alike, declared once."""

    def decorate(command: _Decorated) -> _Decorated:
        for one in reversed(options):
            command = one(command)
        return command

    return decorate


report_options = _together(
    click.option("--json", "form", flag_value="json", help="Print one JSON object; times in seconds."),
    click.option("--csv", "form", flag_value="csv", help="Print the (first) table as CSV."),
)
"""The last of them is what `form` says; None: a report for people."""
run_options = _together(report_options, option("--quiet -q", bool, "Say nothing while it goes on."))
picture_option = option("--plot picture", PICTURE, "Draw a picture: FILE.svg or FILE.png.")
metrics_option = option(
    "--metrics", PORT, "Serve Prometheus metrics on this port of 127.0.0.1 meanwhile.", metavar="PORT"
)
_LOAD = Settings()
load_options = _together(
    option(
        "--delay delays",
        DELAYS,
        "One delay, a range, or several, at random: 2s, 100ms..5s, 1s,5s,30s.",
        _LOAD.delays,
    ),
    option("--size", SIZE, "Bytes of a payload.", _LOAD.size),
    option("--workers", int, "Sends at the same time.", _LOAD.workers),
)


@contextmanager
def naming_options(otherwise: str | None = None) -> Iterator[None]:
    """What a block refuses by the name of an argument is refused by the name of the option for it.

    A `ValueError` that names none of them is what only a broker's client knows to be wrong with the URL
    `otherwise`.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(" ")
        name = f"--{name.replace('_', '-')}"
        if not any(name in parameter.opts for parameter in click.get_current_context().command.params):
            if otherwise is None or not isinstance(error, ValueError):
                raise
            name, reason = "--to", f"can't be used: {hide_secrets(str(error), otherwise)}"
        raise click.BadParameter(reason, param_hint=f"'{name}'") from error
