"""`python -m localdelay` is the `localdelay` command."""

from .cli import main

main(prog_name="localdelay")
