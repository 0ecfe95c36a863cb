"""What `bench` and `compare` share: how a measurement ends, and what is written of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from localdelay.benchmark import plot
from localdelay.benchmark.result import BenchError
from localdelay.cli.options import PICTURE, option
from localdelay.cli.terminal import Failed, Teller, can_be_live, stopped
from localdelay.signals import Stopped

picture_option = option("--plot picture", PICTURE, "Draw a picture: FILE.svg or FILE.png.")


@contextmanager
def measuring(picture: Path | None, quiet: bool, stopped_text: str) -> Iterator[Teller]:
    """A measurement, with who tells of its progress; what ends it is said in a line."""
    # What the library would log is in the report.
    logging.getLogger("localdelay").addHandler(logging.NullHandler())
    if picture is not None and not plot.available():
        raise Failed("--plot needs matplotlib: pip install 'localdelay[plot]'")
    teller = Teller(live=not quiet and can_be_live(), status=not quiet)
    try:
        with teller:
            yield teller
    except Stopped as error:
        stopped(error.signum, stopped_text)
    except (BenchError, ConnectionError, ModuleNotFoundError) as error:
        raise Failed(str(error)) from error


def written(path: Path, write: Callable[[], None]) -> str | None:
    """Why a file can't be written, or None if it is: another file may have room all the same."""
    try:
        write()
    except OSError as error:
        # The path as it was given: a full disk's error names none.
        return f"{str(path)!r} can't be written: {error.strerror or error}"
    return None
