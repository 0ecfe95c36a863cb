"""What the failures of a queue's sends and hand-backs say: of the broker, in the log, and as numbers."""

from __future__ import annotations

import logging
import math
import traceback
from contextlib import suppress

from localdelay.errors import PermanentSendError, Throttled
from localdelay.logs import log, told

_LINES_EVERY = 60.0
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
            frames = ""
            with suppress(Exception):  # the error is a stranger's, and so is what it says of itself
                frames = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES))
            line = "a send has failed; others are told of once a minute: %s\nTraceback:\n%s"
            log(logging.WARNING, line, told(error), frames)
        elif now >= self._next_line:
            count = self.count - self._logged
            since = " since the last such line" if self._logged else ""
            log(logging.INFO, "%d failed%s, the latest with %s", count, since, told(error))
        else:
            return
        self._next_line = now + _LINES_EVERY
        self._logged = self.count


def is_down(error: Exception) -> bool:
    """Whether the broker may be down that made a send fail so."""
    return not isinstance(error, Throttled | PermanentSendError)
