"""How a command says that it was called wrongly: in one line on standard error, with exit code 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class OneLineErrors(click.Group):
    """A group whose commands, too, report a usage error in one line: click puts the usage before it."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the group's own arguments."""
        with _one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Parse the arguments of the command, and run it."""
        with _one_line():
            return super().invoke(ctx)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        # A class with a `show` of its own is no error but help, asked for by giving no arguments.
        if type(error).show is not click.UsageError.show:
            raise
        # Without a context click prints the message alone.
        raise click.UsageError(_message(error)) from error


def _message(error: click.UsageError) -> str:
    message = " ".join(error.format_message().split())
    wrong_value = isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter)
    if wrong_value or error.ctx is None:
        return message
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} See '{error.ctx.command_path} --help'."
