"""What stands before the sends of a queue: it is told what came of them, and says what follows."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import traceback
from collections.abc import Callable, Collection

from localdelay.errors import PermanentSendError, Throttled
from localdelay.listening import Event, Listener, SendingOpened, SendingShut, tell
from localdelay.probe import Probe, ProbePolicy

logger = logging.getLogger("localdelay")

_LINES_EVERY = 60.0
_LONGEST_TOLD = 1000  # characters
_FRAMES = 5  # of a traceback, the innermost


def is_down(error: Exception) -> bool:
    """Whether the broker may be down that made a send fail so."""
    return not isinstance(error, Throttled | PermanentSendError)


class Valve:
    """Of one queue. What it says it says in the thread of the queue's loop."""

    def __init__(self, policy: ProbePolicy | None, listener: Listener | None) -> None:
        self.probe = Probe(policy)
        self._listener = listener
        self._next_shut_line = self._next_failure_line = -math.inf
        self._has_warned = False
        self._failures_logged = 0
        self.failures = 0
        self.throttled = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called when something else may be taken than before."""

    def sent(self, now: float) -> None:
        """Something was sent. To be told of it as long as there is a row of failures."""
        shut_since = self.probe.since
        if self.probe.sent():
            shut_for = max(0.0, now - shut_since)
            line = f"a message was sent again after {shut_for:.3g} s: all that is due goes out"
            self._say(logging.INFO, line, SendingOpened(shut_for))

    def failed(self, now: float, numbers: Collection[int], error: Exception) -> None:
        """A send of these messages has failed, and none of them was sent."""
        if not is_down(error):
            if isinstance(error, Throttled):
                self.probe.throttled(now, numbers, random.random())
                self.on_change()
            return
        if self.probe.failed(now, numbers, random.random()):
            level = logging.DEBUG
            if now >= self._next_shut_line:
                level, self._next_shut_line = logging.WARNING, now + _LINES_EVERY
            line = (
                "sends of different messages fail one after the other, and the broker seems to be down: one "
                f"message at a time is tried, and the rest waits until one is sent; the last: {told(error)}"
            )
            self._say(level, line, SendingShut(error))
        elif self.probe.is_shut:
            self.on_change()

    def count_failure(self, now: float, error: Exception) -> None:
        """A send or a hand-back of a message has failed: a warning says so once, then a line a minute."""
        self.failures += 1
        self.throttled += isinstance(error, Throttled)
        if not self._has_warned and is_down(error):
            self._has_warned = True
            # As text: a record may be kept, and the frames of a traceback hold the payload.
            frames = "".join(traceback.format_tb(error.__traceback__, limit=-_FRAMES))
            line = "a send has failed; others are told of once a minute: %s\nTraceback:\n%s"
            log(logging.WARNING, line, told(error), frames)
        elif now >= self._next_failure_line:
            count = self.failures - self._failures_logged
            log(logging.INFO, "%d failed since the last such line, the latest with %s", count, told(error))
        else:
            return
        self._next_failure_line = now + _LINES_EVERY
        self._failures_logged = self.failures

    def _say(self, level: int, line: str, event: Event) -> None:
        log(level, "%s", line)
        tell(self._listener, event)
        self.on_change()


def told(error: BaseException) -> str:
    """The error in a line of bounded length, whatever its `repr` does."""
    try:
        line = repr(error)
    except Exception:  # noqa: BLE001 (it is a stranger's)
        return type(error).__name__
    line = line.encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= _LONGEST_TOLD else f"{line[:_LONGEST_TOLD]}..."


def log(level: int, line: str, *values: object) -> None:
    """Log a line."""
    with contextlib.suppress(Exception):  # a handler that raises must not end a worker
        logger.log(level, line, *values)
