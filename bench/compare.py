"""In memory and in Redis side by side: `localdelay compare`, with its figures kept."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import click

from localdelay.benchmark.compare import run
from localdelay.benchmark.comparison import Comparison
from localdelay.cli.compare import report as told
from localdelay.cli.output import laid_out

from .samples import Result, facts, heading, load, save


def measure(asked: Comparison) -> Result:
    """Run it; what the command prints is kept beside what it measured."""
    report = run(asked, lambda plan, what: click.echo(f"{plan or 'all'}: {what}", err=True))
    printed = [str(line) for line in laid_out(told(report))]
    return {"facts": facts("compare"), **report.as_json(), "printed": printed}


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    yield f"{heading(measured)}; one run; raw: [results/compare.json](results/compare.json)."
    yield from ("", "```", *measured["printed"], "```")


@click.command()
@click.option("--quick", is_flag=True, help="Shorter: to see that it works. It is not saved.")
@click.option("--table", "saved", is_flag=True, help="Only print what was saved.")
def main(quick: bool, saved: bool) -> None:
    """Compare queues in memory and in Redis.

    Writes bench/results/compare.json, and prints what `localdelay compare` prints.
    """
    if saved:
        measured = load("compare")
    else:
        asked = Comparison()
        measured = measure(attrs.evolve(asked, quick=True, seconds=0.5) if quick else asked)
        if not quick:
            save("compare", measured)
    click.echo("\n".join(lines(measured)))


if __name__ == "__main__":
    main()
