"""The command line: parsing and printing only."""

from __future__ import annotations

import click

from localdelay.cli.bench import bench
from localdelay.cli.compare import compare
from localdelay.cli.demo import demo
from localdelay.cli.journal import journal
from localdelay.cli.plan import plan
from localdelay.cli.relay import relay
from localdelay.cli.terminal import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="localdelay")
def main() -> None:
    """Hold the delayed messages that a throttled queue refuses, and send each when it is due."""


for command in (plan, demo, bench, compare, relay, journal):
    main.add_command(command)
