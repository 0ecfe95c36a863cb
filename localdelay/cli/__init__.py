"""The command line: parsing and printing only."""

from __future__ import annotations

import click

from localdelay.cli.bench import bench
from localdelay.cli.compare import compare
from localdelay.cli.demo import demo
from localdelay.cli.errors import OneLineErrors
from localdelay.cli.journal import journal
from localdelay.cli.plan import plan
from localdelay.cli.relay import relay


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="localdelay")
def main() -> None:
    """Hold the delayed messages that a throttled queue refuses, and send each when it is due."""


main.add_command(plan)
main.add_command(demo)
main.add_command(bench)
main.add_command(compare)
main.add_command(relay)
main.add_command(journal)
