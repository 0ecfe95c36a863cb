"""What the failures of a queue's sends and hand-backs say: of the broker, in the log, and as numbers."""

from __future__ import annotations

import logging
import math
import traceback

from localdelay.errors import PermanentSendError, Throttled
from localdelay.logs import log

_LINES_EVERY = 60.0
_LONGEST_TOLD = 1000  # characters
_FRAMES = 5  # of a traceback, the innermost


class Failures:
    """Counts them: a warning with a traceback says so once, then a line a minute."""

    def __init__(self) -> None:
        self.count = 0
        self.throttled = 0
        self._has_warned = False
        self._next_line = -math.inf
        self._logged = 0

    def add(self, now: float, error: Exception) -> None:
        """A send or a hand-back of a message has failed."""
        self.count += 1
        self.throttled += isinstance(error, Throttled)
        if not self._has_warned and is_down(error):
            self._has_warned = True
            # As text: a record may be kept, and the frames of a traceback hold the payload.
            frames = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES))
            line = "a send has failed; others are told of once a minute: %s\nTraceback:\n%s"
            log(logging.WARNING, line, told(error), frames)
        elif now >= self._next_line:
            count = self.count - self._logged
            log(logging.INFO, "%d failed since the last such line, the latest with %s", count, told(error))
        else:
            return
        self._next_line = now + _LINES_EVERY
        self._logged = self.count


def is_down(error: Exception) -> bool:
    """Whether the broker may be down that made a send fail so."""
    return not isinstance(error, Throttled | PermanentSendError)


def told(error: BaseException) -> str:
    """The error in a line of bounded length, whatever its `repr` does."""
    try:
        line = repr(error)
    except Exception:  # noqa: BLE001 (it is a stranger's)
        return type(error).__name__
    line = line.encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _LONGEST_TOLD else f"{line[:_LONGEST_TOLD]}..."
