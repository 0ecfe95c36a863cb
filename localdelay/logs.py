"""What is said in the log."""

from __future__ import annotations

import logging
from contextlib import suppress


def log(level: int, line: str, *values: object, to: str = "localdelay") -> None:
    """Say a line, to this logger. A handler that raises ends nothing: no worker, no drain, no loop."""
    with suppress(Exception):  # it is a stranger's
        logging.getLogger(to).log(level, line, *values, stacklevel=2)
