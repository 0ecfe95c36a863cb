"""What the commands share of their options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from localdelay.units import format_duration, format_size, parse_duration, parse_size

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


# Newer releases of click have a generic ParamType, older ones one that can't be subscripted.
class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option that a function parses, which raises `ValueError`."""

    def __init__(self, name: str, parse: Callable[[str], Any], shown: Callable[[Any], str] = str) -> None:
        self.name = name
        self.shown = shown
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """What the function makes of the text; what is no text is a default, and is as it should be."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_output(text: str) -> Path:
    """A file that can be written: better to know before a long run than after it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"{text!r} is no file in a directory that there is")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text!r} can't be written")
    return path


DURATION = Parsed("duration", parse_duration, format_duration)
SIZE = Parsed("size", parse_size, format_size)
OUTPUT = Parsed("file", parse_output)


def option(
    names: str, type: Any, help: str, default: Any = None, *, unset: str | None = None, **more: Any
) -> Callable[[_Decorated], _Decorated]:
    """An option, or a flag where its type is bool; its help ends with its default, as people write it.

    `unset` says what happens without it, where that is no value or one that is written in another way.
    `names` are separated by spaces, as in `--json as_json`.
    """
    if default is not None:
        more["default"] = default
        unset = unset or getattr(type, "shown", str)(default)
    told = help if unset is None else f"{help}  [default: {unset}]"
    if type is bool:
        return click.option(*names.split(), is_flag=True, help=told, **more)
    return click.option(*names.split(), type=type, help=told, **more)


@contextmanager
def naming_options() -> Iterator[None]:
    """What a block refuses by the name of an argument is refused by the name of the option for it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        name, _, reason = str(error).partition(" ")
        name = f"--{name.replace('_', '-')}"
        if not any(name in parameter.opts for parameter in click.get_current_context().command.params):
            raise
        raise click.BadParameter(reason, param_hint=f"'{name}'") from error
