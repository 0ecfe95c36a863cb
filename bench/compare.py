"""In memory and in Redis side by side: `localdelay compare`, with its figures kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import click

from localdelay.benchmark.compare import run
from localdelay.benchmark.comparison import Comparison
from localdelay.cli.compare import report as told
from localdelay.cli.output import laid_out

from .samples import Result, facts, heading, progress, show, table_option


def measure(asked: Comparison) -> Result:
    """Run it; what the command prints is kept beside what it measured."""
    report = run(asked, lambda plan, what: progress(f"{plan or 'all'}: {what}"))
    printed = [str(line) for line in laid_out(told(report))]
    return {"facts": facts("compare"), **report.as_json(), "printed": printed}


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    yield f"{heading(measured)}; one run; raw: [results/compare.json](results/compare.json)."
    yield from ("", "```", *measured["printed"], "```")


@click.command()
@click.option("--quick", is_flag=True, help="Shorter: to see that it works. It is not saved.")
@table_option
def main(quick: bool, saved: bool) -> None:
    """Compare queues in memory and in Redis.

    Writes bench/results/compare.json, and prints what `localdelay compare` prints.
    """
    asked = Comparison(quick=True, seconds=0.5) if quick else Comparison()
    show("compare", lines, partial(measure, asked), saved=saved, keep=not quick)


if __name__ == "__main__":
    main()
