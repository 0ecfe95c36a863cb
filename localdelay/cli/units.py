"""`localdelay.units` for the commands, and what makes options of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from localdelay.units import format_duration, format_number, format_size, parse_duration, parse_size

__all__ = [
    "DURATION",
    "SIZE",
    "Parsed",
    "format_duration",
    "format_number",
    "format_size",
    "parse_duration",
    "parse_size",
]


# Newer releases of click have a generic ParamType, older ones one that can't be subscripted.
class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option that a function parses, which raises `ValueError`."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the function makes of the text; what is no text is a default, and is as it should be."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = Parsed("duration", parse_duration)
SIZE = Parsed("size", parse_size)
