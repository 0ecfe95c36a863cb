"""Proof by breaking it: `python -m bench.faults [--long] [--only NAME] [--seed N]`.

Does each fault to a real queue, reads the broker by id, and prints a row for it. What is lost, early, or
duplicated beyond what was in flight makes its row bad, and the exit code 1.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import attrs
import click

from tests.kit.faults.every import FAULTS, run_all
from tests.kit.faults.row import Row, table
from tests.kit.faults.scale import Scale
from tests.kit.servers.process import NotInstalled

from .samples import Result, facts, heading, progress, show, table_option


def lines(measured: Result) -> Iterator[str]:
    """The README's table."""
    seed, raw = measured["seed"], "raw: [results/faults.json](results/faults.json)."
    yield f"{heading(measured)}; seed {seed}; {raw}"
    yield from ("", "```", *table(_rows(measured)), "```")


def _rows(measured: Result) -> list[Row]:
    return [Row(**{**row, "wrong": tuple(row["wrong"])}) for row in measured["rows"]]


@click.command()
@click.option(
    "--long", "is_long", is_flag=True, help="50 kills, five minutes of soak, and so on: half an hour."
)
@click.option("--only", multiple=True, type=click.Choice(list(FAULTS)), help="Only this; repeatable.")
@click.option("--seed", type=int, default=None, help="What was printed, to draw the same again.")
@table_option
def main(is_long: bool, only: tuple[str, ...], seed: int | None, saved: bool) -> None:
    """Break the queue in every way there is, and count what arrives.

    Writes bench/results/faults.json, unless only some were named, and prints the README's table of it.
    """
    drawn = random.randrange(1 << 30) if seed is None else seed

    def measure() -> Result:
        progress(f"seed {drawn}")
        try:
            rows = list(run_all(only or FAULTS, Scale(seed=drawn, long=is_long)))
        except NotInstalled as missing:
            raise click.ClickException(str(missing)) from None
        return {"facts": facts("faults"), "seed": drawn, "rows": [attrs.asdict(row) for row in rows]}

    measured = show("faults", lines, measure, saved=saved, keep=not only)
    sys.exit(0 if all(row.is_good for row in _rows(measured)) else 1)


if __name__ == "__main__":
    main()
