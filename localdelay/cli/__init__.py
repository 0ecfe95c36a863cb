"""The command line: parsing and printing only."""

from __future__ import annotations

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="localdelay")
def main() -> None:
    """Hold the delayed messages that a throttled queue refuses, and send each when it is due."""
