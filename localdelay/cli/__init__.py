"""The command line: parsing and printing only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from localdelay.cli.terminal import Commands

_COMMANDS = ("bench", "check", "compare", "demo", "journal", "plan", "relay")
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_EPILOG = """\b
Every option can be given in the environment, as LOCALDELAY_RELAY_WORKERS=40,
the relay's --to as LOCALDELAY_TO, too; or in the file of --config:
  [relay]
  to = "nats://127.0.0.1:4222/orders"
  delay = "2m"
What is on the command line goes first, then the environment, then the file.
"""


class _Commands(Commands):
    """Each is in a module of its own, and imported when it is asked for: they take a second together."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted({*_COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name."""
        if cmd_name in _COMMANDS and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"localdelay.cli.{cmd_name}"), cmd_name))
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that is asked for; where there is none, one that is called like it is suggested."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"{error.message}{hint}", ctx) from error


def _configure(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Take the options that a TOML file has for each command as their defaults."""
    if path is None:
        return
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows's editors begin with a mark
        ctx.default_map = _defaults(ctx, ctx.command, found)
    except OSError as error:
        raise click.BadParameter(f"'{path}' can't be read: {error.strerror}") from error
    except ValueError as error:
        raise click.BadParameter(f"'{path}' can't be used: {error}") from error
    except RecursionError as error:
        raise click.BadParameter(f"'{path}' can't be used: it is nested too deeply") from error


def _defaults(ctx: click.Context, command: click.Command, found: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names of their parameters; a `ValueError` for what the command doesn't know."""
    options = {name.lstrip("-"): one for one in command.params for name in one.opts if one.expose_value}
    defaults: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("_", "-")
        inner = command.get_command(ctx, name) if isinstance(command, click.Group) else None
        if inner is not None and isinstance(value, Mapping):
            defaults[name] = _defaults(ctx, inner, value)
        elif name in options and not isinstance(value, Mapping):
            try:
                default = _default(options[name], value)
            except ValueError as error:
                raise ValueError(f"{key!r} of {command.name} must be {error}") from None
            if default is not None:
                defaults[str(options[name].name)] = default
        else:
            raise ValueError(f"{command.name} has no option or command {key!r}")
    return defaults


def _default(option: click.Parameter, value: Any) -> Any:
    """What a value in a file stands for; None: nothing. A `ValueError` says what it must be.

    Whether a text or a number is a right one is for the option to judge, as if it had been typed.
    """
    if isinstance(option, click.Option) and option.is_flag:
        if not isinstance(value, bool):
            raise ValueError("true or false")
        # The value of a flag may be a word: "json", for one, which without the flag is not said.
        return option.flag_value if value else False if option.is_bool_flag else None
    values = value if option.multiple else [value]
    if not isinstance(values, list) or not all(map(_could_be_typed, values)):
        raise ValueError("a list of texts or numbers" if option.multiple else "a text or a number")
    typed = list(map(str, values))
    return typed if option.multiple else typed[0]


def _could_be_typed(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and "\0" not in str(value)


@click.group(
    "localdelay",
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "LOCALDELAY"},
)
@click.version_option(package_name="localdelay")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=_configure,
    metavar="FILE",
    help="A TOML file with a table of options for each command.",
)
def main() -> None:
    """Hold the delayed messages that a throttled queue refuses, and send each when it is due."""


@main.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands and options.

    Put this into ~/.bashrc: eval "$(localdelay completion bash)"
    """
    click.echo(_SHELLS[shell](main, {}, "localdelay", "_LOCALDELAY_COMPLETE").source())
