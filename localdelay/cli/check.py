"""`localdelay check`: whether a broker is set up for this, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import click
import trio

from localdelay.brokers import without_secrets
from localdelay.brokers.checks.finding import Finding
from localdelay.brokers.opening import look_at
from localdelay.cli.options import option
from localdelay.cli.output import WIDTH, Block, Lines, Output, Styled, filled
from localdelay.cli.terminal import Failed, printable
from localdelay.units import counted

_EPILOG = """\b
Examples:
  localdelay check amqp://guest:guest@127.0.0.1:5672/orders
  LOCALDELAY_TO=redis://127.0.0.1:6379/orders localdelay check --json

\b
Exit codes:
  0    fit
  1    something is to be changed
  2    wrong options, or it could not look
  130  stopped by Ctrl-C
"""
_MARKS = {True: ("ok", "green"), None: ("note", ""), False: ("CHANGE", "yellow")}
_INDENT = 23


@click.command(epilog=_EPILOG)
@click.argument("url", envvar="LOCALDELAY_TO")
@option("--json as_json", bool, "Print one JSON object.")
@click.pass_context
def check(ctx: click.Context, url: str, *, as_json: bool) -> None:
    """Look whether a broker is set up for this.

    Looks whether topic, queue or stream is there, what a confirmed message survives, what happens when it is
    full or evicts, and whether the broker can delay messages itself; and tells what to change. Publishes
    nothing. A note is for you to judge, or can't be seen from here. URL is that of `relay --to`.
    """
    output = Output(Failed)  # 1 would say that something is to be changed
    try:
        shown = without_secrets(url)
        found = trio.run(look_at, url)
    except ValueError as error:
        reason = str(error).removeprefix("url ")
        raise click.BadParameter(reason, param_hint="'URL'") from error
    is_fit = all(one.is_well is not False for one in found)
    findings = [attrs.asdict(one) for one in found]
    output.report(
        "json" if as_json else None,
        report(shown, found, output.columns or WIDTH),
        {"url": shown, "fit": is_fit, "findings": findings},
    )
    ctx.exit(0 if is_fit else 1)


def report(url: str, found: Sequence[Finding], width: int) -> Iterator[Block]:
    """The findings, each with its mark, and below them what to change."""
    yield Lines([Styled(printable(url), "bold")])
    hanging = " " * (_INDENT - 2 if width >= 2 * _INDENT else 2)
    for one in found:
        mark, style = _MARKS[one.is_well]
        text = f"  {one.what:<13} {mark:<6} {printable(one.found)}"
        yield Lines(filled(text, style, min(width, WIDTH), hanging))
    yield ""
    wrong = [one for one in found if one.is_well is False]
    if not wrong:
        yield Styled("It is fit.", "green")
        return
    yield Styled(f"{counted(len(wrong), 'thing')} to change:", "bold")
    # In a line each, however long: it may be a command to be copied.
    yield Lines([f"  {one.what}: {printable(one.change)}" for one in wrong])
