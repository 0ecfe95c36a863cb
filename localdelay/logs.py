"""What is said in the log."""

from __future__ import annotations

import logging
from contextlib import suppress

_LONGEST_TOLD = 1000  # characters


def log(level: int, line: str, *values: object, to: str = "localdelay") -> None:
    """Say a line, to this logger. A handler that raises ends nothing: no worker, no drain, no loop."""
    with suppress(Exception):  # it is a stranger's
        logging.getLogger(to).log(level, line, *values, stacklevel=2)


def told(error: BaseException) -> str:
    """The error in a line of bounded length, whatever its `repr` does."""
    try:
        line = repr(error)
    except Exception:  # noqa: BLE001 (it is a stranger's)
        return type(error).__name__
    line = line.encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _LONGEST_TOLD else f"{line[:_LONGEST_TOLD]}..."
